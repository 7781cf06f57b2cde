"""Synthetic slides: what is painted, what is written, and that the truth is true."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import MaskPyramid
from wsi_pipeline.synthesis import painting
from wsi_pipeline.synthesis.artefacts import Artefact
from wsi_pipeline.synthesis.blocks import BlockTask, join_boxes, run_tasks
from wsi_pipeline.synthesis.boxes import paint_box
from wsi_pipeline.synthesis.layout import Mosaic
from wsi_pipeline.synthesis.noise import enlarge, lattice, smooth_field
from wsi_pipeline.synthesis.painting import World
from wsi_pipeline.synthesis.plans import SlidePlan
from wsi_pipeline.synthesis.spooling import Spool, level_sizes, reduce_by_two
from wsi_pipeline.synthetic import (
    SYNTHETIC_CLASSES,
    SyntheticSlide,
    paint_region,
    write_slide,
)

Image = tuple[NDArray[np.uint8], NDArray[np.uint8]]
BENIGN, THIRD, FOURTH, FIFTH = 2, 3, 4, 5
LUMEN_LIGHT = 215
"""Darkest channel of empty glass is about 230; of pale cytoplasm about 180."""


def only(*patterns: int) -> tuple[float, ...]:
    return tuple(float(value in patterns) for value in range(6))


@pytest.fixture(scope="module")
def tissues() -> dict[int, Image]:
    """A plane of one pattern each, 0.5 um/px, in the reference stain."""
    return {
        pattern: paint_region(
            7, (1024, 1024), 0.5, mix=only(pattern), stain_variation=0.0
        )
        for pattern in (BENIGN, THIRD, FOURTH, FIFTH)
    }


@pytest.fixture(scope="module")
def strip(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSlide:
    path = tmp_path_factory.mktemp("strip") / "strip.tiff"
    return write_slide(path, seed=4, size_px=(2500, 1101), lesions="one")


def test_the_same_seed_gives_the_same_bytes() -> None:
    first = paint_region(3, (300, 200), 0.5, artefacts=True)
    again = paint_region(3, (300, 200), 0.5, artefacts=True)
    other = paint_region(4, (300, 200), 0.5, artefacts=True)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert (first[0] != other[0]).mean() > 0.5


def test_a_painted_region_is_the_same_on_every_run() -> None:
    # Truth alone: colours pass through exp, whose last bit may differ by machine.
    _, truth = paint_region(11, (512, 512), 1.0)
    counts = np.bincount(truth.ravel(), minlength=6)
    assert counts.sum() == 512 * 512
    assert np.abs(counts - EXPECTED_COUNTS).max() <= 30


EXPECTED_COUNTS = np.array([58134, 125282, 0, 73, 58830, 19825])


@settings(max_examples=6, deadline=None)
@given(
    x=st.integers(-600, 600),
    y=st.integers(-600, 600),
    w=st.integers(1, 150),
    h=st.integers(1, 150),
)
def test_boxes_of_one_plane_agree(x: int, y: int, w: int, h: int) -> None:
    around = paint_region(
        5, (w + 40, h + 30), 0.5, patch_um=300, origin_px=(x - 9, y - 5)
    )
    inside = paint_region(5, (w, h), 0.5, patch_um=300, origin_px=(x, y))
    for whole, part in zip(around, inside, strict=True):
        assert np.array_equal(whole[5 : 5 + h, 9 : 9 + w], part)


def test_the_size_of_the_blocks_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(6, Mosaic(77, 300.0, only(0, 1, 2, 3, 4, 5)), 0.0)
    parts = [painting.paint_block(world, column, 0, 0.5) for column in (0, 1)]
    monkeypatch.setattr(painting, "BLOCK_PX", 1024)
    rgb, truth = painting.paint_block(world, 0, 0, 0.5)
    for column, (part, classes) in enumerate(parts):
        across = slice(512 * column, 512 * (column + 1))
        apart = np.abs(part.astype(np.int16) - rgb[:512, across])
        # sums of floats in another order turn a few roundings
        assert (apart > 0).mean() < 0.002
        assert apart.max() <= 30
        assert (classes != truth[:512, across]).mean() < 1e-4


@pytest.mark.parametrize("mpp", [0.6, 1.0, 2.5])
def test_every_class_that_is_asked_for_is_there(mpp: float) -> None:
    side = round(900 / mpp)
    _, truth = paint_region(2, (side, side), mpp)
    assert set(np.unique(truth)) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("pattern", range(6))
def test_classes_that_are_not_asked_for_are_absent(pattern: int) -> None:
    _, truth = paint_region(8, (512, 512), 1.0, mix=only(pattern))
    assert set(np.unique(truth)) <= {pattern, 1}
    assert pattern in truth


def test_unequal_shares_are_drawn_by_lot() -> None:
    mix = (0.0, 0.3, 0.0, 0.0, 0.1, 0.6)
    _, truth = paint_region(9, (512, 512), 1.5, mix=mix, patch_um=150)
    shares = np.bincount(truth.ravel(), minlength=6) / truth.size
    assert shares[5] > shares[4] > 0
    assert shares[[0, 2, 3]].sum() == 0


def test_shapes_do_not_depend_on_the_pixel_size() -> None:
    _, fine = paint_region(2, (1024, 512), 0.25, patch_um=150)
    _, middle = paint_region(2, (512, 256), 0.5, patch_um=150)
    _, coarse = paint_region(2, (256, 128), 1.0, patch_um=150)
    assert len(np.unique(fine)) >= 4
    # borders move by at most a pixel
    assert (fine[::2, ::2] == middle).mean() > 0.985
    assert (middle[::2, ::2] == coarse).mean() > 0.975


def test_epithelium_has_one_colour_in_all_glands(tissues: dict[int, Image]) -> None:
    colours = []
    for pattern, (rgb, truth) in tissues.items():
        inside = ndimage.binary_erosion(truth == pattern, iterations=4)
        # cytoplasm: neither lumen nor nucleus
        body = inside & (rgb.min(-1) < LUMEN_LIGHT) & (rgb[..., 0] > 150)
        colours.append(np.median(rgb[body], axis=0))
    assert np.ptp(np.array(colours), axis=0).max() <= 14


def test_the_patterns_differ_in_their_lumina(tissues: dict[int, Image]) -> None:
    per_mm2, area_um2, share = {}, {}, {}
    for pattern, (rgb, truth) in tissues.items():
        gland = truth == pattern
        bright = gland & (rgb.min(-1) > LUMEN_LIGHT)
        lumen = ndimage.binary_opening(bright, iterations=3)
        labels, count = ndimage.label(lumen)
        per_mm2[pattern] = count / (gland.sum() * 0.25e-6)
        sizes = np.bincount(labels.ravel())[1:] * 0.25
        # the lumen that a random lumen pixel lies in
        area_um2[pattern] = float((sizes**2).sum() / max(sizes.sum(), 1))
        share[pattern] = lumen.sum() / gland.sum()
    assert per_mm2[FOURTH] > per_mm2[THIRD] > 2 * per_mm2[BENIGN]
    assert area_um2[BENIGN] > 3 * area_um2[THIRD] > 6 * area_um2[FOURTH]
    assert share[BENIGN] > share[FOURTH] > 0.05
    assert share[FIFTH] < 0.005


def test_pattern_3_is_discrete_and_pattern_4_is_fused(
    tissues: dict[int, Image],
) -> None:
    sizes = {}
    for pattern in (THIRD, FOURTH):
        labels, _ = ndimage.label(tissues[pattern][1] == pattern)
        sizes[pattern] = np.bincount(labels.ravel())[1:].max() * 0.25
    # one gland of pattern 3 is at most about 100 um across
    assert sizes[THIRD] < 10_000
    assert sizes[FOURTH] > 50_000


def test_glass_is_bright_and_lies_where_the_truth_says() -> None:
    rgb, truth = paint_region(3, (512, 512), 1.0, mix=only(0, 1), patch_um=200)
    glass = truth == 0
    assert 0.2 < glass.mean() < 0.8
    light = ndimage.gaussian_filter(rgb.min(-1).astype(float), 2)
    fits = {
        shift: np.corrcoef(np.roll(light, shift, 1).ravel(), glass.ravel())[0, 1]
        for shift in (-3, -2, -1, 0, 1, 2, 3)
    }
    assert max(fits, key=lambda shift: fits[shift]) == 0
    assert rgb[ndimage.binary_erosion(glass, iterations=3)].min() > 220


def test_stain_varies_by_seed_unless_told_not_to() -> None:
    def tone(seed: int, variation: float) -> NDArray[np.float64]:
        rgb, _ = paint_region(
            seed, (512, 512), 1.0, mix=only(1), stain_variation=variation
        )
        return np.asarray(rgb.reshape(-1, 3).mean(0))

    varied = np.array([tone(seed, 1.0) for seed in range(6)])
    same = np.array([tone(seed, 0.0) for seed in range(6)])
    assert np.ptp(varied, axis=0).max() > 20
    # fibres and clefts fall differently
    assert np.ptp(same, axis=0).max() < 12


def test_truth_is_background_under_black_pen_only() -> None:
    plain = World(1, Mosaic(9, 500.0, only(1)), 0.0)
    line = ((0.0, 128.0), (256.0, 128.0))
    for ink, hidden in ((0, False), (1, False), (2, True)):
        pen = (Artefact("pen", line, 60.0, ink),)
        rgb, truth = paint_box(replace(plain, artefacts=pen), (0, 0), (512, 512), 0.5)
        assert (truth[256, 200:300] == (0 if hidden else 1)).all()
        assert rgb[256, 200:300].mean() < 110
        assert (truth[20] == 1).all()


def test_a_fold_is_darker_tissue_of_the_same_class() -> None:
    plain = World(1, Mosaic(9, 500.0, only(1)), 0.0)
    fold = (Artefact("fold", ((0.0, 128.0), (256.0, 128.0)), 50.0),)
    before, truth = paint_box(plain, (0, 0), (512, 512), 0.5)
    after, same = paint_box(replace(plain, artefacts=fold), (0, 0), (512, 512), 0.5)
    assert np.array_equal(truth, same)
    assert after[250:262].mean() < before[250:262].mean() - 25
    assert np.array_equal(after[:60], before[:60])


def test_synthetic_tissue_has_the_colours_of_real_prostate(data_dir: Path) -> None:
    real = [
        tifffile.imread(path)[..., :3].reshape(-1, 3).mean(0)
        for path in sorted(data_dir.glob("labelled/monuseg-prostate/*DX1.tif"))
    ]
    rgb, _ = paint_region(1, (1024, 1024), 0.5, mix=only(2, 3, 4), stain_variation=0)
    apart = np.abs(rgb.reshape(-1, 3).mean(0) - np.mean(real, axis=0))
    # the two real ones differ from each other by up to 10
    assert apart.max() < 30


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size_px": (0, 5)}, "size_px"),
        ({"mpp": 0.1}, "mpp"),
        ({"mpp": float("nan")}, "mpp"),
        ({"mix": (1.0, 1.0)}, "mix"),
        ({"mix": (0.0,) * 6}, "mix"),
        ({"mix": (1.0, 1.0, 1.0, 1.0, 1.0, -1.0)}, "mix"),
        ({"seed": -1}, "seed"),
        ({"patch_um": 0.0}, "patch_um"),
    ],
)
def test_a_region_that_cannot_be_is_refused(
    options: dict[str, object], said: str
) -> None:
    arguments: dict[str, object] = {"seed": 1, "size_px": (8, 8), "mpp": 0.5}
    with pytest.raises(ConfigError, match=said):
        paint_region(**(arguments | options))  # type: ignore[arg-type]  # that is the test


def test_openslide_reads_levels_and_scale(strip: SyntheticSlide) -> None:
    with openslide.OpenSlide(strip.slide_path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert slide.level_dimensions == ((2500, 1101), (1250, 551), (625, 276))
        assert slide.properties["openslide.level[0].tile-width"] == "256"


def test_coarser_levels_are_marked_as_reduced(strip: SyntheticSlide) -> None:
    with tifffile.TiffFile(strip.slide_path) as tiff:
        assert [int(page.subfiletype) for page in tiff.pages] == [0, 1, 1]
        assert not tiff.is_bigtiff


def test_the_slide_shows_what_was_painted(strip: SyntheticSlide) -> None:
    plan = SlidePlan(4, size_px=(2500, 1101), lesions="one")
    rgb, truth = paint_box(plan.world()[0], (0, 0), (2500, 1101), 0.5)
    with openslide.OpenSlide(strip.slide_path) as slide:
        shown = np.asarray(slide.read_region((0, 0), 0, (2500, 1101)).convert("RGB"))
    # JPEG quality 85 with 4:2:0 colour on noisy pixels
    assert np.abs(shown.astype(int) - rgb).mean() < 5
    written = MaskPyramid(strip.truth_path).read_level(Box(0, 0, 2500, 1101), 0)
    assert np.array_equal(written, truth)


def test_the_truth_has_the_classes_and_the_frame_of_the_slide(
    strip: SyntheticSlide,
) -> None:
    masks = MaskPyramid(strip.truth_path)
    assert masks.classes == SYNTHETIC_CLASSES
    assert masks.levels[0].size_px == (2500, 1101)
    assert masks.scale.x == pytest.approx(0.5)
    assert set(masks.count_pixels()) <= {0, 1, 2, 3, 4, 5}
    top = masks.levels[-1]
    assert 255 not in masks.read_level(top.box, len(masks.levels) - 1)


def test_the_box_of_a_planted_lesion_is_tight(strip: SyntheticSlide) -> None:
    truth = MaskPyramid(strip.truth_path).read_level(Box(0, 0, 2500, 1101), 0)
    (lesion,) = strip.lesions
    rows, columns = np.nonzero(truth >= 3)
    assert len(rows) > 5000
    x, y = int(columns.min()), int(rows.min())
    w, h = int(columns.max()) - x + 1, int(rows.max()) - y + 1
    assert lesion.box == Box(x, y, w, h)
    assert set(np.unique(truth[truth >= 3])) == {lesion.pattern}


def test_a_planted_lesion_is_a_small_part_of_a_large_slide() -> None:
    _, layout = SlidePlan(1, 1000.0, lesions="one", kind="section").world()
    tissue = sum(piece.area_um2 for piece in layout.pieces)
    assert len(layout.lesions) == 1
    assert layout.lesions[0].area_um2 < 0.01 * tissue


def test_a_slide_without_lesions_has_no_gleason_pixel(tmp_path: Path) -> None:
    slide = write_slide(
        tmp_path / "a.tif", seed=3, size_px=(1500, 600), lesions="none", kind="section"
    )
    counts = MaskPyramid(slide.truth_path).count_pixels()
    assert slide.lesions == ()
    assert set(counts) == {0, 1, 2}


def test_more_processes_write_the_same_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    slides = [
        write_slide(
            tmp_path / str(workers) / "a.tiff",
            seed=8,
            size_px=(4500, 300),
            workers=workers,
            progress=lambda done, total: seen.append((done, total)),
        )
        for workers in (1, 2)
    ]
    one, two = (slide.slide_path.read_bytes() for slide in slides)
    assert one == two
    assert seen == [(0, 2), (1, 2), (2, 2)] * 2
    box = Box(0, 0, 4500, 300)
    first, second = (MaskPyramid(s.truth_path).read_level(box, 0) for s in slides)
    assert np.array_equal(first, second)


def test_levels_above_the_blocks_are_area_means(tmp_path: Path) -> None:
    slide = write_slide(
        tmp_path / "long.tiff", seed=1, size_px=(17_000, 260), lesions="none"
    )
    with openslide.OpenSlide(slide.slide_path) as opened:
        sizes = opened.level_dimensions
        assert sizes[-1] == (532, 9)
        finer = opened.read_region((0, 0), 4, sizes[4]).convert("RGB")
        coarser = opened.read_region((0, 0), 5, sizes[5]).convert("RGB")
    mean = reduce_by_two(np.asarray(finer))
    # JPEG noise is about 5 grey levels per pixel; over 32 pixels it averages out
    apart = [
        np.asarray(image)[:8].reshape(8, 133, 4, 3).mean(axis=(0, 2))
        for image in (mean, coarser)
    ]
    assert np.abs(apart[0] - apart[1]).max() < 6
    assert np.abs(apart[0] - np.roll(apart[1], 1, axis=0)).max() > 20


def test_coarse_truth_is_every_second_pixel(tmp_path: Path) -> None:
    plan = SlidePlan(5, size_px=(700, 500), lesions="none")
    world, _ = plan.world()
    whole = Box(0, 0, 700, 500)
    source = Source("a", (700, 500), Scale(0.5, 0.5), "synthetic", whole)
    masks = MaskPyramid.create(tmp_path / "t.zarr", source, 2, SYNTHETIC_CLASSES)
    (tmp_path / "spool").mkdir()
    task = BlockTask(
        world=world,
        spool=Spool(tmp_path / "spool", 85),
        truth_path=tmp_path / "t.zarr",
        mpp=0.5,
        levels=3,
        truth_downsample=2,
        reaches=(),
        patterns=(),
        block=whole,
    )
    with run_tasks([task], 1) as results:
        assert list(results) == [()]
    _, truth = paint_box(world, (0, 0), (700, 500), 0.5)
    assert np.array_equal(masks.read_level(Box(0, 0, 350, 250), 0), truth[::2, ::2])


def test_large_slides_carry_truth_at_about_one_um() -> None:
    assert SlidePlan(1, size_px=(20_000, 10_000)).truth_downsample() == 1
    assert SlidePlan(1, size_px=(20_000, 10_001)).truth_downsample() == 2
    assert SlidePlan(1, size_px=(20_000, 10_001), mpp=0.25).truth_downsample() == 4
    assert SlidePlan(1, size_px=(20_000, 10_001), mpp=1.0).truth_downsample() == 1


@given(
    seed=st.integers(0, 2**40),
    megapixels=st.floats(2, 20_000),
    kind=st.sampled_from(["strip", "section"]),
)
def test_a_plan_has_the_size_and_shape_it_promises(
    seed: int, megapixels: float, kind: str
) -> None:
    w, h = SlidePlan(seed, megapixels, kind=kind).shape_px()  # type: ignore[arg-type]  # drawn
    assert w * h == pytest.approx(megapixels * 1e6, rel=0.01)
    low, high = (2, 10) if kind == "strip" else (1.2, 1.5)
    assert low * 0.99 <= w / h <= high * 1.01
    levels = level_sizes((w, h))
    assert len(levels) >= 3
    assert max(levels[-1].size_px) <= 1024


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_slide(tmp_path / "a.tiff", seed=1, size_px=(600, 300), progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": Path("a.svs")}, "tiff"),
        ({"workers": 0}, "workers"),
        ({"seed": -1}, "seed"),
        ({"megapixels": 0.1}, "megapixels"),
        ({"megapixels": 50_000.0}, "megapixels"),
        ({"mpp": 2.0}, "mpp"),
        ({"size_px": (100, 3000)}, "size_px"),
        ({"kind": "smear"}, "kind"),
        ({"lesions": "many"}, "lesions"),
    ],
)
def test_a_slide_that_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    arguments: dict[str, object] = {"path": tmp_path / "a.tiff", "seed": 1} | options
    with pytest.raises(ConfigError, match=said):
        write_slide(**arguments)  # type: ignore[arg-type]  # that is the test
    assert list(tmp_path.iterdir()) == []


def test_lattice_points_stay_in_place_whatever_box_asks() -> None:
    x, y, (lot,) = lattice(3, 10.0, 0.4, (0, 0, 200, 200), 1)
    u, v, (same,) = lattice(3, 10.0, 0.4, (50, 60, 110, 90), 1)
    whole = set(zip(x.tolist(), y.tolist(), lot.tolist(), strict=True))
    part = set(zip(u.tolist(), v.tolist(), same.tolist(), strict=True))
    assert part < whole
    assert len(part) == 7 * 4
    assert 0 <= min(lot) < 0.05 < 0.95 < max(lot) < 1


def test_smooth_noise_is_bounded_and_of_unit_variance() -> None:
    axis = np.arange(0, 6000, 3.0)
    field = smooth_field(5, 60, axis, axis)
    assert np.abs(field).max() <= 3.6
    assert 0.85 < field.std() < 1.15
    assert abs(field.mean()) < 0.1
    part = smooth_field(5, 60, axis[300:340], axis[7:50])
    np.testing.assert_allclose(part, field[7:50, 300:340], atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_enlarging_a_plane_gives_the_plane(factor: int) -> None:
    rows, columns = np.mgrid[:9, :7].astype(np.float32)
    size = (6 * factor, 8 * factor - 1)
    big = enlarge(3 * columns - rows, factor, size)
    y, x = np.mgrid[: size[1], : size[0]] / factor
    np.testing.assert_allclose(big, 3 * x - y, atol=1e-5)


def test_joining_boxes_ignores_empty_ones() -> None:
    empty, one, two = Box(0, 0, 0, 0), Box(5, 6, 2, 3), Box(1, 8, 3, 9)
    assert join_boxes(empty, one) == one
    assert join_boxes(one, empty) == one
    assert join_boxes(one, two) == Box(1, 6, 6, 11)
