"""Tiles that cannot be decoded are counted, marked and never painted over."""

import csv
import errno
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from tests.predictions import even_grid, region
from tests.test_readers import corrupt_tile, write_pyramid
from tests.test_stitching import CLASSES, KEEP, make_store, tissue_of
from tests.test_tiling import digest
from tests.tiff_files import tissue_like
from wsi_pipeline import tiling
from wsi_pipeline.batch import run_batch
from wsi_pipeline.classes import NOT_COMPUTED, UNREADABLE
from wsi_pipeline.cluster import processes
from wsi_pipeline.config import RunConfig, TileOptions, TissueOptions
from wsi_pipeline.demo import write_truthful_slide
from wsi_pipeline.errors import SlideError, UnreadableError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.places import as_place
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.readability import check_readable, unreadable_share
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers.base import BackendSlide
from wsi_pipeline.readers.ranges import LocalRanges
from wsi_pipeline.regions import Tissue
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.stitching import stitch_masks
from wsi_pipeline.tiling import tile_slide

pytestmark = pytest.mark.promise("R4")

SIDE, TILE = 2048, 64
TILES = (SIDE // TILE) ** 2
NATIVE = TileOptions(block_px=512, chunk_px=64, workers=3, target_mpp="native")
COPIED = TileOptions(block_px=512, codec="jpeg", workers=3, target_mpp="native")
COARSE = TileOptions(block_px=512, chunk_px=64, workers=3, target_mpp=1.0)
PATHS = [
    pytest.param("tiff", NATIVE, id="native"),
    pytest.param("tiff", COPIED, id="copied"),
    pytest.param("tiff", COARSE, id="reduced"),
    pytest.param("openslide", NATIVE, id="openslide"),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "slide.tif"
    args = {"level": 80, "outcolorspace": "ycbcr"}
    write_pyramid(
        path,
        tissue_like(SIDE, SIDE),
        tile=TILE,
        compression="jpeg",
        compressionargs=args,
    )
    return path


def spoilt(sound: Path, path: Path, count: int) -> tuple[Path, list[Box]]:
    """A copy with so many bad tiles, anywhere, and where they are."""
    path.write_bytes(sound.read_bytes())
    chosen = np.random.default_rng(count).permutation(TILES)[:count]
    across = SIDE // TILE
    for tile in chosen:
        corrupt_tile(path, int(tile))
    rows = sorted(divmod(int(tile), across) for tile in chosen)
    return path, [Box(x * TILE, y * TILE, TILE, TILE) for y, x in rows]


def drawn(tiles: Collection[Box], base: int = 1) -> np.ndarray:
    """(SIDE / base, SIDE / base) bool array: where tiles are."""
    out = np.zeros((SIDE // base, SIDE // base), np.bool_)
    for tile in tiles:
        place = tile.scaled_down(base)
        out[place.rows, place.columns] = True
    return out


@pytest.mark.parametrize(("backend", "options"), PATHS)
@pytest.mark.parametrize("count", [1, 10, 100])
def test_exactly_the_bad_tiles_are_listed_and_all_others_are_read(
    tmp_path: Path,
    sound: Path,
    backend: str,
    options: TileOptions,
    count: int,
    record_property: Callable[[str, object], None],
) -> None:
    path, bad = spoilt(sound, tmp_path / "slide.tif", count)
    pyramid = tile_slide(open_slide(path, backend=backend), tmp_path / "a", options)
    assert list(pyramid.unreadable) == bad
    whole = tile_slide(open_slide(sound, backend=backend), tmp_path / "b", options)
    lost = drawn(bad, int(pyramid.levels[0].downsample))
    found, wanted = (p.read_level(p.levels[0].box, 0) for p in (pyramid, whole))
    if options is COPIED:
        assert (found[:, lost] > 250).all()  # white, once through JPEG
    else:
        assert (found[:, lost] == 255).all()
    np.testing.assert_array_equal(found[:, ~lost], wanted[:, ~lost])
    assert whole.unreadable == ()
    names = {entry.name for entry in whole.path.iterdir()}
    assert {entry.name for entry in pyramid.path.iterdir()} == names
    figure = f"{len(pyramid.unreadable)} of {count} listed, {TILES - count} others read"
    record_property("figure", figure)


@pytest.mark.parametrize("options", [NATIVE, COARSE])
def test_labels_say_unreadable_and_not_computed_to_the_pixel(
    tmp_path: Path, sound: Path, options: TileOptions
) -> None:
    path, bad = spoilt(sound, tmp_path / "slide.tif", 10)
    pyramid = tile_slide(open_slide(path), tmp_path / "a.zarr", options)
    mask, coverage, sure = stitched(pyramid, tmp_path)
    lost = drawn(bad, int(pyramid.levels[0].downsample))
    np.testing.assert_array_equal(coverage == UNREADABLE, lost)
    np.testing.assert_array_equal(mask == NOT_COMPUTED, lost)
    np.testing.assert_array_equal(sure == NOT_COMPUTED, lost[::4, ::4])


def test_without_the_list_the_mask_would_have_a_class_there(
    tmp_path: Path, sound: Path
) -> None:
    path, _ = spoilt(sound, tmp_path / "slide.tif", 10)
    pyramid = tile_slide(open_slide(path), tmp_path / "a.zarr", NATIVE)
    pyramid.unreadable = ()
    mask, coverage, _ = stitched(pyramid, tmp_path)
    assert UNREADABLE not in coverage
    assert NOT_COMPUTED not in mask


def stitched(pyramid: Pyramid, folder: Path) -> list[np.ndarray]:
    """Mask, coverage and confidence of one region over all of a slide."""
    base = int(pyramid.levels[0].downsample)
    whole = region(Box(0, 0, SIDE, SIDE), even_grid(64), base)
    paths = [pyramid.labels_path / name for name in ("m", "coverage", "confidence")]
    stitch_masks(
        pyramid,
        make_store(folder / "predictions.zarr", [whole]),
        tissue_of((SIDE, SIDE), True),
        CLASSES,
        paths[0],
        paths[1],
        KEEP,
        confidence_path=paths[2],
    )
    labels = [pyramid.masks(path.name) for path in paths]
    return [label.read_level(label.levels[0].box, 0) for label in labels]


def test_other_processes_tell_of_them_too(tmp_path: Path, sound: Path) -> None:
    path, bad = spoilt(sound, tmp_path / "slide.tif", 10)
    slide = open_slide(path, backend="openslide")
    with processes(2) as pool:
        apart = tile_slide(slide, tmp_path / "apart.zarr", NATIVE, pool=pool)
    here = tile_slide(slide, tmp_path / "here.zarr", NATIVE)
    assert list(apart.unreadable) == bad
    assert digest(apart.path) == digest(here.path)


def test_a_place_in_a_store_keeps_the_list_too(tmp_path: Path, sound: Path) -> None:
    path, bad = spoilt(sound, tmp_path / "slide.tif", 3)
    place = as_place("memory://bad-tiles/slide.ome.zarr")
    pyramid = tile_slide(open_slide(path), place, NATIVE)
    assert list(pyramid.unreadable) == bad
    assert sorted(entry.name for entry in place.iterdir()) == [
        "0",
        "1",
        "2",
        "zarr.json",
    ]


def test_a_run_that_goes_on_knows_the_bad_tiles_of_the_one_before(
    tmp_path: Path, sound: Path
) -> None:
    path, bad = spoilt(sound, tmp_path / "slide.tif", 100)
    place, alone = tmp_path / "a.zarr", NATIVE.model_copy(update={"workers": 1})
    seen: list[int] = []

    def stop(done: int, _: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    slide = open_slide(path)
    with pytest.raises(KeyboardInterrupt):
        tile_slide(slide, place, alone, key="of-this-slide", progress=stop)
    pyramid = tile_slide(
        slide,
        place,
        alone,
        key="of-this-slide",
        progress=lambda done, _: seen.append(done),
    )
    assert seen[0] > 9
    assert list(pyramid.unreadable) == bad


def test_a_tile_that_decodes_to_another_size_is_bad(tmp_path: Path) -> None:
    """libjpeg finds nothing wrong with it; the rest of its place would be white."""
    tiles = [tissue_like(side, side) for side in (64, 32, *[64] * 14)]
    coded = [imagecodecs.jpeg8_encode(tile, level=80) for tile in tiles]
    path = tmp_path / "short.tif"
    tifffile.imwrite(
        path,
        iter(coded),
        shape=(256, 256, 3),
        dtype=np.uint8,
        tile=(64, 64),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(2, 2),
        resolution=(20000, 20000),
        resolutionunit=3,
    )
    slide = open_slide(path, backend="tiff")
    with pytest.raises(UnreadableError, match="corrupted tile"):
        slide.read(Box(64, 0, 64, 64))
    assert slide.read(Box(0, 64, 256, 64)).std() > 10


@pytest.mark.parametrize("guarded", [True, False])
def test_a_handle_that_another_thread_spoilt_costs_no_sound_tile(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    path, (bad,) = spoilt(sound, tmp_path / "slide.tif", 1)
    slide: Any = open_slide(path, backend="openslide")
    handle = slide._open()
    with pytest.raises(Exception, match="JPEG"):
        handle.read_planes(bad, 0)
    slide._handles = dict.fromkeys(slide._handles, handle)
    if not guarded:
        monkeypatch.setattr(BackendSlide, "_retried", refuse)
    far = Box((bad.x + SIDE // 2) % SIDE, bad.y, TILE, TILE)
    with nullcontext() if guarded else pytest.raises(UnreadableError, match="again"):
        slide.read(far)


def refuse(*_: object) -> None:
    raise UnreadableError("slide.tif: not tried again")


def test_a_disk_that_fails_is_no_bad_tile(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a disk that is back later must read the tile, not mark it."""
    monkeypatch.setattr(tiling, "forecast_bytes", lambda *_: 0)
    slide = open_slide(sound)
    fetch = LocalRanges.fetch

    def failing(self: LocalRanges, offsets: Any, counts: Any) -> list[bytes]:
        if len(offsets) and min(offsets) > sound.stat().st_size // 2:
            raise OSError(errno.EIO, "Input/output error")
        return fetch(self, offsets, counts)

    monkeypatch.setattr(LocalRanges, "fetch", failing)
    with pytest.raises(SlideError, match="Input/output error") as caught:
        tile_slide(slide, tmp_path / "a.zarr", NATIVE)
    assert not isinstance(caught.value, UnreadableError)


def test_what_cannot_be_decoded_counts_as_tissue() -> None:
    mask = np.zeros((40, 50), np.bool_)
    mask[:20] = True
    tissue = Tissue(mask, 8.0, Scale(1, 1))
    inside, outside = Box(0, 0, 80, 40), Box(0, 240, 80, 40)
    assert unreadable_share(tissue, []) == 0
    assert unreadable_share(tissue, [inside]) == 50 / 1000
    assert unreadable_share(tissue, [outside]) == 50 / 1050
    nothing = replace(tissue, mask=np.zeros_like(mask))
    assert unreadable_share(nothing, []) == 0
    assert unreadable_share(nothing, [outside]) == 1


def test_too_much_that_cannot_be_decoded_fails_the_slide(
    tmp_path: Path, sound: Path
) -> None:
    path, _ = spoilt(sound, tmp_path / "slide.tif", 12)
    pyramid = tile_slide(open_slide(path), tmp_path / "a.zarr", NATIVE)
    tissue = tissue_of((SIDE, SIDE), True)
    message = r"slide\.tif: 12 of its tiles cannot be decoded, 1\.2 % of the tissue"
    with pytest.raises(SlideError, match=message + r" where 1 % may be; .*max_unrea"):
        check_readable(pyramid, tissue)
    allowed = TissueOptions(max_unreadable=12 / TILES)
    assert check_readable(pyramid, tissue, allowed) == 12 / TILES


def test_a_run_tells_of_bad_tiles_and_fails_above_the_limit(tmp_path: Path) -> None:
    slide, *_ = write_truthful_slide(
        tmp_path / "slide.tif", seed=11, megapixels=3, workers=1, geojson=False
    )
    info = open_slide(slide).info
    across = -(-info.size_px[0] // info.tile_px[0])
    bad = [across + 1, across + 2]
    for tile in bad:
        corrupt_tile(slide, tile)
    model, config = find_model("synthetic"), RunConfig()
    result = run_batch([slide], tmp_path / "failed", model, config)
    assert result.exit_code == 1
    manifest = result.outcomes[0].manifest
    assert manifest.status == "failed"
    assert manifest.reason.startswith("2 of its tiles cannot be decoded")
    allowed = config.updated("tissue", max_unreadable=0.5)
    out = tmp_path / "degraded"
    result = run_batch([slide], out, model, allowed)
    assert result.exit_code == 3
    manifest = result.outcomes[0].manifest
    assert manifest.status == "degraded"
    assert manifest.reason.startswith(f"2 of {info.tile_count} tiles cannot be decoded")
    assert manifest.facts["tile"]["unreadable_tiles"] == 2
    assert manifest.facts["stitch"]["share_unreadable"] > 0
    with (out / "slides.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["unreadable_tiles"]) == ("degraded", "2")
    pyramid = Pyramid(SlideFolder(out / manifest.slide_id).pyramid)
    coverage = pyramid.masks("coverage")
    factor = int(pyramid.levels[0].downsample)
    lost = np.zeros(coverage.levels[0].size_px[::-1], np.bool_)
    for tile in info.tiles(info.box):
        number = tile.y // info.tile_px[1] * across + tile.x // info.tile_px[0]
        if number in bad:
            place = tile.scaled_down(factor)
            lost[place.rows, place.columns] = True
    found = coverage.read_level(coverage.levels[0].box, 0)
    np.testing.assert_array_equal(found == UNREADABLE, lost)
    masks = pyramid.masks("synthetic")
    assert (masks.read_level(masks.levels[0].box, 0)[lost] == NOT_COMPUTED).all()
