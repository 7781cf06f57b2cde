"""Pixels, levels and handles: both backends, every level, every way to break a file."""

import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.tiff_files import tissue_like
from wsi_pipeline.errors import SlideError, UnknownNameError
from wsi_pipeline.geometry import Box
from wsi_pipeline.readers import READERS, choose_backends, open_slide
from wsi_pipeline.readers.base import pyramid_levels
from wsi_pipeline.slide import Slide

Pixels = NDArray[np.uint8]
HALF_UM = (20000, 20000)  # pixels per cm


def write_pyramid(
    path: Path,
    image: Pixels,
    levels: int = 1,
    tile: int | None = 128,
    subifds: bool = False,
    **options: object,
) -> list[Pixels]:
    """Write a pyramidal TIFF at 0.5 um/px; returns what went into each level."""
    given_levels = [image[:: 2**i, :: 2**i] for i in range(levels)]
    options = {"photometric": "rgb", "metadata": None, "resolutionunit": 3} | options
    if tile:
        options["tile"] = (tile, tile)
    options.setdefault("resolution", HALF_UM)
    with tifffile.TiffWriter(path, ome=bool(options.pop("ome", False))) as file:
        for index, level in enumerate(given_levels):
            more = {"subifds": levels - 1} if subifds and not index else {}
            file.write(level, subfiletype=min(index, 1), **more, **options)
    return given_levels


def read_all(slide: Slide, level: int) -> Pixels:
    return slide.read(slide.info.box, level)


@pytest.mark.parametrize("codec", ["jpeg-rgb", "jpeg-ycbcr", "lzw", "deflate"])
def test_both_backends_give_the_same_pixels_on_every_level(
    tmp_path: Path, codec: str
) -> None:
    name, _, colour = codec.partition("-")
    colour = colour or "rgb"
    path = tmp_path / "odd.tif"
    options = {"compression": name}
    if name == "jpeg":
        options = {"compression": "jpeg", "photometric": colour}
        options["compressionargs"] = {"level": 80, "outcolorspace": colour}
    write_pyramid(path, tissue_like(1029, 771), levels=4, **options)
    native = open_slide(path, backend="tiff")
    other = open_slide(path, backend="openslide")
    assert [v.size_px for v in native.info.levels] == [
        (1029, 771),
        (515, 386),
        (258, 193),
        (129, 97),
    ]
    assert native.info.levels == other.info.levels
    assert [v.downsample for v in native.info.levels] == [1, 2, 4, 8]
    for level in range(4):
        # whole levels: their corner is exact in OpenSlide whatever its downsample
        w, h = native.info.levels[level].size_px
        mine, theirs = read_all(native, level), read_all(other, level)
        assert np.array_equal(mine[:h, :w], theirs[:h, :w])
        assert mine[:h, :w].std() > 20


@settings(deadline=None, max_examples=40)
@given(
    x=st.integers(-300, 1100),
    y=st.integers(-300, 800),
    w=st.integers(0, 400),
    h=st.integers(0, 400),
    level=st.integers(0, 2),
)
def test_any_box_is_a_window_into_the_padded_level(
    shared_pyramid: tuple[Path, list[Pixels]],
    x: int,
    y: int,
    w: int,
    h: int,
    level: int,
) -> None:
    path, levels = shared_pyramid
    slide = open_slide(path)
    area = slide.info.levels[level].cover(Box(x, y, w, h))
    padded = np.full((3000, 3000, 3), 255, np.uint8)
    rows, columns = levels[level].shape[:2]
    padded[1000 : 1000 + rows, 1000 : 1000 + columns] = levels[level]
    moved = area.shift(1000, 1000)
    read = slide.read(Box(x, y, w, h), level)
    assert read.shape == (area.h, area.w, 3)
    assert np.array_equal(read, padded[moved.rows, moved.columns])


@pytest.fixture(scope="module")
def shared_pyramid(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[Pixels]]:
    path = tmp_path_factory.mktemp("pyramid") / "lossless.tif"
    levels = write_pyramid(path, tissue_like(801, 533), 3, compression="deflate")
    return path, levels


@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_a_read_over_the_edge_has_the_cover_size_and_white_outside(
    shared_pyramid: tuple[Path, list[Pixels]], backend: str
) -> None:
    path, levels = shared_pyramid
    slide = open_slide(path, backend=backend)
    read = slide.read(Box(700, -50, 200, 100))
    assert read.shape == (100, 200, 3)
    assert np.all(read[:50] == 255)
    assert np.all(read[:, 101:] == 255)
    assert np.array_equal(read[50:, :101], levels[0][:50, 700:])
    assert np.all(slide.read(Box(5000, 5000, 7, 9)) == 255)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "webp", "compressionargs": {"lossless": True}},
        {"compression": "zstd", "predictor": True},
        {"compression": "jpeg2000"},
        {"compression": None, "tile": None, "rowsperstrip": 50},
        {"compression": "lzw", "tile": None, "rowsperstrip": 7},
        {"compression": "deflate", "subifds": True},
        {"compression": "deflate", "ome": True},
    ],
    ids=lambda o: str(o.get("compression")) + ("" if o.get("tile", 1) else "-strips"),
)
def test_what_openslide_refuses_is_read_natively_to_the_last_bit(
    tmp_path: Path, options: dict[str, object]
) -> None:
    path = tmp_path / "slide.tif"
    levels = write_pyramid(path, tissue_like(401, 333), 2, **options)
    with open_slide(path) as slide:
        assert slide.info.backend == "tiff"
        assert np.array_equal(slide.read(Box(0, 0, 401, 333)), levels[0])
        whole = slide.read(slide.info.box, len(slide.info.levels) - 1)
        last = levels[len(slide.info.levels) - 1]
        assert np.array_equal(whole[: last.shape[0], : last.shape[1]], last)


def test_planes_of_one_colour_each_are_put_together(tmp_path: Path) -> None:
    image = tissue_like(300, 200)
    path = tmp_path / "planar.tif"
    tifffile.imwrite(
        path,
        image.transpose(2, 0, 1),
        photometric="rgb",
        planarconfig="separate",
        tile=(64, 64),
        compression="lzw",
        resolution=HALF_UM,
        resolutionunit=3,
        metadata=None,
    )
    slide = open_slide(path, backend="tiff")
    assert np.array_equal(slide.read(slide.info.box), image)


@pytest.mark.parametrize(("kind", "expected"), [(1, 178), (2, 153)])
def test_alpha_is_laid_on_white(tmp_path: Path, kind: int, expected: int) -> None:
    image = np.dstack([tissue_like(200, 200), np.full((200, 200), 255, np.uint8)])
    image[50:60, 50:60] = (51, 51, 51, 128)
    image[90:, :] = 0
    path = tmp_path / "alpha.tif"
    tifffile.imwrite(
        path,
        image,
        photometric="rgb",
        extrasamples=[kind],
        tile=(64, 64),
        resolution=HALF_UM,
        resolutionunit=3,
        metadata=None,
    )
    read = open_slide(path, backend="tiff").read(Box(0, 0, 200, 200))
    # premultiplied: 51 + 127; straight: 51 * 128 / 255 + 127
    assert set(read[50:60, 50:60].ravel()) == {expected}
    assert np.all(read[90:] == 255)
    assert np.array_equal(read[:50], image[:50, :, :3])


def zero_tiles(path: Path, page: int, tiles: list[int]) -> None:
    """Give tiles of a page no bytes, as scanners do for what they did not scan."""
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[page].tags["TileByteCounts"]
        counts = list(tag.value)
        for tile in tiles:
            counts[tile] = 0
        tag.overwrite(counts)


@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_a_tile_without_bytes_is_background(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "holes.tif"
    levels = write_pyramid(path, tissue_like(500, 400), 2, compression="deflate")
    zero_tiles(path, 0, [5])
    read = open_slide(path, backend=backend).read(Box(0, 0, 500, 400))
    assert np.all(read[128:256, 128:256] == 255)
    assert np.array_equal(read[:128], levels[0][:128])
    assert np.array_equal(read[256:], levels[0][256:])


def corrupt_tile(path: Path, tile: int) -> None:
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[tile]
        count = file.pages[0].databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\x11" * count)


@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_one_bad_tile_fails_its_own_reads_only(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "bad.tif"
    write_pyramid(path, tissue_like(1024, 1024), 2, compression="jpeg")
    corrupt_tile(path, 9)
    slide = open_slide(path, backend=backend)
    failed = []
    for index, box in enumerate(Box(0, 0, 1024, 1024).blocks(128)):
        try:
            slide.read(box)
        except SlideError as error:
            failed.append((index, str(error)[:34]))
    assert failed == [(9, "bad.tif: cannot be read at level 0")]


def test_without_reopening_openslide_would_fail_all_later_reads(tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    write_pyramid(path, tissue_like(1024, 1024), 2, compression="jpeg")
    corrupt_tile(path, 9)
    slide = open_slide(path, backend="openslide")
    handle = slide._open()  # type: ignore[attr-defined] # the handle below the guard
    failed = 0
    for box in Box(0, 0, 1024, 1024).blocks(128):
        try:
            handle.read_planes(box, 0)
        except Exception:  # counts whatever the library raises
            failed += 1
    assert failed == 55


def read_checksum(slide: Slide, boxes: list[Box]) -> list[int]:
    return [int(slide.read(box).astype(np.int64).sum()) for box in boxes]


@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_threads_share_a_slide(
    shared_pyramid: tuple[Path, list[Pixels]], backend: str
) -> None:
    path, _ = shared_pyramid
    slide = open_slide(path, backend=backend)
    boxes = list(slide.info.box.blocks(61)) * 4
    wanted = read_checksum(slide, boxes)
    slide.close()
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda box: read_checksum(slide, [box])[0], boxes))
    assert got == wanted


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_processes_share_a_slide(
    shared_pyramid: tuple[Path, list[Pixels]], backend: str, method: str
) -> None:
    path, _ = shared_pyramid
    slide = open_slide(path, backend=backend)
    boxes = list(slide.info.box.blocks(61))
    wanted = read_checksum(slide, boxes)
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        assert pool.submit(read_checksum, slide, boxes).result() == wanted
        assert read_checksum(slide, boxes) == wanted


def read_and_tell(slide: Slide, wanted: list[int], boxes: list[Box], pipe: Any) -> None:
    same = read_checksum(slide, boxes) == wanted
    pipe.send((same, set(slide._handles)))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("backend", ["tiff", "openslide"])
def test_an_inherited_handle_is_not_used(
    shared_pyramid: tuple[Path, list[Pixels]], backend: str
) -> None:
    slide = open_slide(shared_pyramid[0], backend=backend)
    boxes = list(slide.info.box.blocks(300))
    wanted = read_checksum(slide, boxes)
    context = get_context("fork")
    ours, theirs = context.Pipe()
    arguments = (slide, wanted, boxes, theirs)  # inherited, not pickled
    child = context.Process(target=read_and_tell, args=arguments)
    child.start()
    same, handles = ours.recv()
    child.join()
    assert same
    assert handles == {os.getpid(), child.pid}
    assert read_checksum(slide, boxes) == wanted


def test_a_pickle_holds_no_handle_and_reads_the_same(
    shared_pyramid: tuple[Path, list[Pixels]],
) -> None:
    path, levels = shared_pyramid
    slide = open_slide(path, mpp=0.3, mpp_source="samplesheet")
    data = pickle.dumps(slide)
    assert len(data) < 2000
    copy = pickle.loads(data)  # noqa: S301 - made two lines above
    assert copy.info == slide.info
    assert (copy.info.scale.x, copy.info.scale_source) == (0.3, "samplesheet")
    assert np.array_equal(copy.read(copy.info.box), levels[0])


def test_handles_are_given_back(shared_pyramid: tuple[Path, list[Pixels]]) -> None:
    path, _ = shared_pyramid
    for backend in READERS.names():
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(20):
            with open_slide(path, backend=backend) as slide:
                slide.read(Box(0, 0, 9, 9))
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208


def test_a_slide_that_changed_under_the_reader_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_pyramid(path, tissue_like(300, 200), compression="deflate")
    slide = open_slide(path)
    slide.close()
    write_pyramid(path, tissue_like(200, 300), compression="deflate")
    with pytest.raises(SlideError, match="has changed since it was opened"):
        slide.read(Box(0, 0, 10, 10))


def test_levels_and_backends_that_do_not_exist_are_named(
    shared_pyramid: tuple[Path, list[Pixels]],
) -> None:
    path, _ = shared_pyramid
    with pytest.raises(SlideError, match="has no level 3; there are 3"):
        open_slide(path).read(Box(0, 0, 1, 1), 3)
    with pytest.raises(UnknownNameError, match="tiff, openslide"):
        open_slide(path, backend="nope")


@settings(max_examples=200)
@given(
    w=st.integers(64, 200_000),
    h=st.integers(64, 200_000),
    steps=st.lists(st.sampled_from([2, 4]), min_size=1, max_size=5),
    rounding=st.sampled_from(["floor", "ceil"]),
)
def test_downsamples_are_exact_however_sizes_were_rounded(
    w: int, h: int, steps: list[int], rounding: str
) -> None:
    sizes, factors = [(w, h)], [1]
    for step in steps:
        a, b = sizes[-1]
        a, b = (
            (a // step, b // step)
            if rounding == "floor"
            else (-(-a // step), -(-b // step))
        )
        if min(a, b) < 8:
            break
        sizes.append((a, b))
        factors.append(factors[-1] * step)
    assert [v.downsample for v in pyramid_levels(sizes)] == factors


def test_other_ratios_are_kept_as_they_are() -> None:
    levels = pyramid_levels([(9000, 6000), (3000, 2000), (1234, 823)])
    assert levels[1].downsample == 3
    assert levels[2].downsample == pytest.approx(7.2918, abs=1e-4)


def test_backends_by_format_and_compression(data_dir: Path) -> None:
    slides = data_dir / "slides"
    choices = {
        "aperio/cmu-1-small-region.svs": ("tiff",),
        "tiff/CMU-1-Small-Region.webp.tiff": ("tiff",),
        "qptiff/small_vectra.qptiff": ("tiff",),
        "hamamatsu/fluorescence-dapi.ndpi": ("openslide",),
        "dicom-tiny/sm_image.dcm": ("openslide",),
    }
    for name, wanted in choices.items():
        head = (slides / name).read_bytes()[:512]
        assert choose_backends(slides / name, head) == wanted


def test_the_cmu_slide_has_the_same_pixels_in_both_backends(data_dir: Path) -> None:
    path = data_dir / "slides/aperio/cmu-1-small-region.svs"
    native, other = open_slide(path), open_slide(path, backend="openslide")
    assert (native.info.backend, other.info.backend) == ("tiff", "openslide")
    for info in (native.info, other.info):
        assert (info.size_px, info.tile_px) == ((2220, 2967), (240, 240))
        assert (info.vendor, info.compression) == ("aperio", "jpeg")
        assert (info.scale.x, info.scale.y, info.warnings) == (0.499, 0.499, ())
    assert native.info.scale_source == "Aperio MPP"
    box = Box(-10, 2900, 2300, 100)
    assert np.array_equal(native.read(box), other.read(box))
    assert np.array_equal(read_all(native, 0), read_all(other, 0))


def test_webp_and_ome_slides_look_like_the_svs_of_the_same_scan(data_dir: Path) -> None:
    box = Box(500, 700, 800, 600)
    svs = open_slide(data_dir / "slides/aperio/cmu-1-small-region.svs").read(box)
    for codec in ("jpeg", "webp"):
        path = data_dir / f"slides/tiff/CMU-1-Small-Region.{codec}.tiff"
        copy = open_slide(path, mpp=0.499).read(box)
        # lossy twice; a wrong colour space or a shifted tile would show here
        assert np.corrcoef(svs.ravel(), copy.ravel())[0, 1] > 0.98
        assert np.abs(svs.mean((0, 1)) - copy.mean((0, 1))).max() < 1
    ome = open_slide(data_dir / "slides/ome/HE_example.tif")
    assert ome.info.size_px == (1380, 1484)
    assert ome.info.scale.x == pytest.approx(0.50008, abs=1e-6)
    assert ome.info.scale_source == "OME PhysicalSizeX/Y"


def test_a_relative_path_survives_a_change_of_folder(
    shared_pyramid: tuple[Path, list[Pixels]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, levels = shared_pyramid
    monkeypatch.chdir(path.parent)
    data = pickle.dumps(open_slide(path.name))
    monkeypatch.chdir(tmp_path)
    slide = pickle.loads(data)  # noqa: S301 - made two lines above
    assert np.array_equal(slide.read(slide.info.box), levels[0])
