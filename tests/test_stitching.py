"""Stitching: un-deform, blend, choose; the same whatever the regions."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from tests.predictions import bent_grid, even_grid, field, laid, region
from wsi_pipeline import stitching
from wsi_pipeline.classes import (
    CERTAIN,
    COARSELY,
    IN_DETAIL,
    NO_TISSUE,
    NOT_COMPUTED,
    SKIPPED,
    MaskClass,
)
from wsi_pipeline.codecs import BloscLz4, Zstd
from wsi_pipeline.config import StitchOptions
from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.label_blocks import halve_values
from wsi_pipeline.layout import LABEL_SHARD_PX, Layout
from wsi_pipeline.ngff import Source, Version
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import COARSE, DETAIL, RegionPrediction, Tissue
from wsi_pipeline.stitching import CONFIDENCE_STEP, stitch_masks

CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "Stroma", (240, 228, 66)),
    MaskClass(2, "Gland", (0, 114, 178)),
)
KEEP = StitchOptions(keep_predictions=True)


def make_pyramid(
    path: Path, size_px: tuple[int, int], base: int = 1, version: Version = "0.5"
) -> Pyramid:
    """Metadata only: stitching reads no pixels."""
    whole = Box(0, 0, *size_px)
    source = Source("slide.tif", size_px, Scale(0.5, 0.5), "test", whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = Zstd() if version == "0.5" else BloscLz4()
    return Pyramid.create(path, source, base, Layout(version, codec=codec))


def make_store(path: Path, regions: list[RegionPrediction]) -> RegionStore:
    shape = regions[0].probabilities.shape if regions else (len(CLASSES), 4, 4)
    boxes, kinds = [r.box for r in regions], [r.kind for r in regions]
    size = shape[2], shape[1]
    store = RegionStore.create(path, boxes, kinds, shape[0], size)
    if regions:
        store.put(0, regions)
    return store


def tissue_of(size_px: tuple[int, int], tissue: bool, downsample: int = 16) -> Tissue:
    shape = -(-size_px[1] // downsample), -(-size_px[0] // downsample)
    return Tissue(np.full(shape, tissue), float(downsample), Scale(0.5, 0.5))


def stitch(
    folder: Path,
    size_px: tuple[int, int],
    regions: list[RegionPrediction],
    tissue: Tissue | None = None,
    base: int = 1,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Mask, coverage and confidence."""
    pyramid = make_pyramid(folder / "slide.ome.zarr", size_px, base)
    paths = [pyramid.labels_path / name for name in ("m", "coverage", "confidence")]
    found = stitch_masks(
        pyramid,
        make_store(folder / "predictions.zarr", regions),
        tissue or tissue_of(size_px, True),
        CLASSES,
        paths[0],
        paths[1],
        KEEP,
        confidence_path=paths[2],
    )
    masks = [MaskPyramid(path) for path in paths]
    assert [mask.levels for mask in masks[:2]] == [pyramid.levels] * 2
    assert len(masks[2].levels) == len(pyramid.levels)
    assert found.pixels == masks[0].count_pixels()
    assert found.coverage == masks[1].count_pixels()
    a, b, c = (mask.read_level(mask.levels[0].box, 0) for mask in masks)
    assert c.shape == tuple(-(-n // CONFIDENCE_STEP) for n in a.shape)
    return a, b, c


def test_one_even_region_is_the_plain_resize(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(3), (16, 16)).transpose(2, 0, 1)
    one = RegionPrediction(
        Box(64, 128, 256, 256), values.astype(np.float16), even_grid(16)
    )
    mask, coverage, sure = stitch(tmp_path, (600, 500), [one])
    at = np.linspace(0, 15, 256)
    rows, columns = np.meshgrid(at, at, indexing="ij")
    plain = np.stack(
        [
            map_coordinates(c.astype(np.float64), (rows, columns), order=1)
            for c in one.probabilities
        ]
    )
    got = mask[128:384, 64:320]
    assert (got == plain.argmax(0)).mean() > 0.9999
    at = np.clip((np.arange(0, 256, 4) + 1.5) / 255 * 15, 0, 15)
    rows, columns = np.meshgrid(at, at, indexing="ij")
    middles = np.stack(
        [
            map_coordinates(c.astype(np.float64), (rows, columns), order=1)
            for c in one.probabilities
        ]
    )
    expected = np.rint(CERTAIN * (middles / middles.sum(0)).max(0))
    assert np.abs(sure[32:96, 16:80] - expected).max() <= 1
    inside = np.zeros(mask.shape, bool)
    inside[128:384, 64:320] = True
    assert (mask[~inside] == NOT_COMPUTED).all()
    assert (sure[~inside[::4, ::4]] == 255).all()
    assert (coverage == np.where(inside, IN_DETAIL, SKIPPED)).all()


def test_splitting_or_shifting_changes_less_than_a_thousandth(tmp_path: Path) -> None:
    size = (512, 512)
    one, *_ = stitch(
        tmp_path / "a", size, [region(Box(0, 0, 512, 512), bent_grid(128))]
    )
    others = [
        stitch(tmp_path / str(n), size, laid(side, step, shift=shift))[0]
        for n, (side, step, shift) in enumerate(
            ((256, 224, 0), (192, 160, 0), (192, 160, 57), (192, 96, 31))
        )
    ]
    rows, columns = np.mgrid[:512, :512].astype(np.float64)
    truth = field(columns, rows).argmax(0)
    assert len(np.unique(truth)) == 3
    for mask in others:
        assert (mask != truth).mean() < 1e-3
        assert (mask != one).mean() < 1e-3
    assert (others[1] != others[2]).mean() < 1e-3


def test_seam_of_regions_that_agree_shows_their_common_answer(tmp_path: Path) -> None:
    regions = [
        RegionPrediction(Box(x, 0, 64, 64), node_values(2), even_grid(4))
        for x in (0, 56)
    ]
    mask, _, sure = stitch(tmp_path, (120, 64), regions)
    assert (mask == 2).all()
    assert (np.abs(sure.astype(int) - round(0.8 * CERTAIN)) <= 1).all()


def node_values(best: int, sure: float = 0.8) -> NDArray[np.float16]:
    values = np.full((3, 4, 4), (1 - sure) / 2, np.float16)
    values[best] = sure
    return values


def test_regions_that_disagree_meet_in_the_middle_of_their_overlap(
    tmp_path: Path,
) -> None:
    regions = [
        RegionPrediction(Box(0, 0, 64, 64), node_values(1), even_grid(4)),
        RegionPrediction(Box(56, 0, 64, 64), node_values(2), even_grid(4)),
    ]
    mask, *_ = stitch(tmp_path, (120, 64), regions)
    assert (mask[:, :60] == 1).all()
    assert (mask[:, 60:] == 2).all()


@pytest.mark.parametrize(
    ("tissue", "mask", "coverage"),
    [(True, NOT_COMPUTED, SKIPPED), (False, 0, NO_TISSUE)],
)
def test_without_regions_only_tissue_stays_not_computed(
    tmp_path: Path, tissue: bool, mask: int, coverage: int
) -> None:
    size = (130, 70)
    got = stitch(tmp_path, size, [], tissue_of(size, tissue))
    assert got[0].shape == (70, 130)
    assert (got[0] == mask).all()
    assert (got[1] == coverage).all()
    assert (got[2] == 255).all()


def test_detail_hides_coarse_and_coarse_shows_towards_its_border(
    tmp_path: Path,
) -> None:
    coarse = RegionPrediction(Box(0, 0, 256, 256), node_values(1), even_grid(4), COARSE)
    fine = RegionPrediction(Box(64, 64, 128, 128), node_values(2), even_grid(4))
    for order in ([coarse, fine], [fine, coarse]):
        folder = tmp_path / str(order[0].kind)
        mask, coverage, _ = stitch(folder, (300, 256), order)
        assert (mask[80:176, 80:176] == 2).all()
        assert (mask[:64, :256] == 1).all()
        assert mask[128, 64] == 1  # at its border the detail has almost no weight
        assert (coverage[80:176, 80:176] == IN_DETAIL).all()
        assert coverage[128, 64] == COARSELY
        assert (coverage[:64, :256] == COARSELY).all()
        assert (coverage[:, 256:] == SKIPPED).all()


def test_one_region_alone_counts_up_to_its_corner(tmp_path: Path) -> None:
    one = RegionPrediction(Box(0, 0, 64, 64), node_values(2), even_grid(4))
    mask, _, sure = stitch(tmp_path, (64, 64), [one])
    assert (mask == 2).all()
    assert (np.abs(sure.astype(int) - round(0.8 * CERTAIN)) <= 1).all()


def test_coarser_base_maps_level_0_boxes_onto_its_pixels(tmp_path: Path) -> None:
    one = region(Box(128, 64, 512, 512), bent_grid(64), base=4)
    size = (1001, 803)  # not a multiple of 4; the region lies inside
    mask, coverage, _ = stitch(tmp_path, size, [one], base=4)
    assert mask.shape == (201, 251)
    rows, columns = np.mgrid[16:144, 32:160].astype(np.float64)
    truth = field(columns, rows).argmax(0)
    assert (mask[16:144, 32:160] != truth).mean() < 2e-3
    assert (coverage == IN_DETAIL).sum() == 128 * 128


def test_region_reaching_over_the_slide_is_cut(tmp_path: Path) -> None:
    one = RegionPrediction(Box(-32, -32, 128, 128), node_values(1), even_grid(4))
    mask, coverage, _ = stitch(tmp_path, (64, 200), [one])
    assert (mask[:96] == 1).all()
    assert (coverage[96:] == SKIPPED).all()


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_workers_and_the_order_of_blocks_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: Version
) -> None:
    size = (2 * LABEL_SHARD_PX + 300, 300)
    left = LABEL_SHARD_PX - 200  # two of them lie over the border of blocks
    regions = [
        region(Box(left + x, y, 256, 256), bent_grid(16), kind=kind)
        for x, y, kind in ((-60, 0, COARSE), (0, 0, DETAIL), (164, 10, DETAIL))
    ]
    tissue = tissue_of(size, True)
    tissue.mask[:, :10] = False

    def files(name: str, workers: int) -> dict[str, bytes]:
        folder = tmp_path / name
        pyramid = make_pyramid(folder / "slide.ome.zarr", size, version=version)
        paths = [pyramid.labels_path / name for name in ("m", "coverage", "confidence")]
        store = make_store(folder / "predictions.zarr", regions)
        stitch_masks(
            pyramid,
            store,
            tissue,
            CLASSES,
            *paths[:2],
            KEEP,
            confidence_path=paths[2],
            workers=workers,
        )
        for path in paths:
            whole = MaskPyramid(path)
            for index, level in enumerate(whole.levels[1:], 1):
                finer = whole.read_level(whole.levels[index - 1].box, index - 1)
                found = whole.read_level(level.box, index)
                assert (found == halve_values(finer)).all()
        return {
            str(file.relative_to(folder)): file.read_bytes()
            for file in pyramid.labels_path.rglob("*")
            if file.is_file()
        }

    one = files("one", 1)
    assert files("three", 3) == one
    run = stitching._run
    monkeypatch.setattr(
        stitching, "_run", lambda work, blocks, *rest: run(work, blocks[::-1], *rest)
    )
    assert files("back", 1) == one
    mask = MaskPyramid(tmp_path / "one" / "slide.ome.zarr" / "labels" / "m")
    assert set(np.unique(mask.read_level(mask.levels[0].box, 0))) == {0, 1, 2, 255}


def test_tissue_decides_pixel_by_pixel(tmp_path: Path) -> None:
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = True
    got, coverage, _ = stitch(
        tmp_path, (80, 64), [], Tissue(mask, 16.0, Scale(0.5, 0.5))
    )
    expected = np.kron(mask, np.ones((16, 16), bool))
    assert ((got == NOT_COMPUTED) == expected).all()
    assert ((coverage == SKIPPED) == expected).all()


def call(folder: Path, store: RegionStore, base: int = 1, keep: bool = True) -> None:
    pyramid = make_pyramid(folder / "slide.ome.zarr", (256, 256), base)
    stitch_masks(
        pyramid,
        store,
        tissue_of((256, 256), True),
        CLASSES,
        pyramid.labels_path / "m",
        pyramid.labels_path / "coverage",
        StitchOptions(keep_predictions=keep),
    )


def test_values_that_are_not_finite_are_refused_and_nothing_appears(
    tmp_path: Path,
) -> None:
    values = node_values(1)
    values[0, 2, 2] = np.nan
    bad = RegionPrediction(Box(0, 0, 64, 64), values, even_grid(4))
    with pytest.raises(RegionError, match="not finite"):
        call(tmp_path, make_store(tmp_path / "p.zarr", [bad]))
    labels = tmp_path / "slide.ome.zarr" / "labels"
    assert list(labels.glob("*")) == []


def test_regions_off_the_bases_grid_are_refused(tmp_path: Path) -> None:
    odd = RegionPrediction(Box(2, 0, 64, 64), node_values(1), even_grid(4))
    with pytest.raises(RegionError, match="multiples of 4"):
        call(tmp_path, make_store(tmp_path / "p.zarr", [odd]), base=4)


def test_other_number_of_classes_is_refused(tmp_path: Path) -> None:
    two = RegionPrediction(Box(0, 0, 64, 64), node_values(1)[:2], even_grid(4))
    with pytest.raises(RegionError, match="names 3 classes"):
        call(tmp_path, make_store(tmp_path / "p.zarr", [two]))


def test_region_that_was_never_written_is_refused(tmp_path: Path) -> None:
    box = Box(0, 0, 64, 64)
    store = RegionStore.create(tmp_path / "p.zarr", [box], [DETAIL], 3, (4, 4))
    with pytest.raises(RegionError, match="was every region written"):
        call(tmp_path, store)


@pytest.mark.parametrize("keep", [True, False])
def test_predictions_are_dropped_unless_kept(tmp_path: Path, keep: bool) -> None:
    one = RegionPrediction(Box(0, 0, 64, 64), node_values(1), even_grid(4))
    call(tmp_path, make_store(tmp_path / "p.zarr", [one]), keep=keep)
    assert (tmp_path / "p.zarr").exists() is keep
