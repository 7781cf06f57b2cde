"""Pictures of validation: panels, places of nodes, colours, captions, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import RegionError
from wsi_pipeline.pictures import publish_picture
from wsi_pipeline.training.showing import PANEL_PX, Shown, picture_of

CLASSES = (
    MaskClass(0, "Background", (255, 255, 255)),
    MaskClass(1, "One\nbroken", (0, 158, 115)),
    MaskClass(7, "Seven", (213, 94, 0)),
    MaskClass(9, "Never there", (1, 2, 3)),
)
GREY = 200
GAP, LINE = 14, 26  # around panels, and height of a caption


def even(h: int, w: int) -> NDArray[np.float32]:
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in (h, w))
    return np.stack(np.meshgrid(columns, rows), axis=-1)


def shown_of(**others: Any) -> Shown:
    """A grey square of 40 px, seen by 4 x 5 nodes; left half 1, right half 7."""
    halves = np.repeat(np.array([[1, 7]], np.uint8), 40, axis=0).repeat(20, axis=1)
    nodes = np.full((4, 5), 7, np.uint8)
    values: dict[str, Any] = {
        "image": np.full((3, 40, 40), GREY, np.uint8),
        "grid": even(4, 5),
        "sampled": np.full((3, 4, 5), 90, np.uint8),
        "deformed": nodes,
        "predicted": halves,
        "truth": halves[:, ::-1].copy(),
    }
    return Shown(**(values | others))


def panels_of(picture: Image.Image, count: int) -> list[NDArray[np.uint8]]:
    """Cut the square panels out."""
    pixels = np.asarray(picture)
    out = []
    for number in range(count):
        x = GAP + number % 4 * (PANEL_PX + GAP)
        y = GAP + LINE + number // 4 * (PANEL_PX + LINE + GAP)
        out.append(pixels[y : y + PANEL_PX, x : x + PANEL_PX])
    return out


def colours_of(picture: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    return {tuple(c) for c in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


def test_every_panel_shows_its_own() -> None:
    picture = picture_of(shown_of(), CLASSES)
    image, nodes, sampled, deformed, predicted, truth = panels_of(picture, 6)
    assert colours_of(image) == {(GREY,) * 3}
    # 0.55 of white over the image, and the dots
    assert colours_of(nodes) == {(0, 0, 0), (230,) * 3}
    assert colours_of(sampled) == {(90,) * 3}
    assert colours_of(deformed) == {(213, 94, 0)}
    half = PANEL_PX // 2
    for panel, left, right in (
        (predicted, (0, 158, 115), (213, 94, 0)),
        (truth, (213, 94, 0), (0, 158, 115)),
    ):
        assert colours_of(panel[:, :half]) == {left}
        assert colours_of(panel[:, half:]) == {right}


def test_the_density_is_a_panel_of_its_own() -> None:
    density = np.ones((4, 5))
    density[0, 0], density[3, 4] = 0, 3
    picture = picture_of(shown_of(density=density), CLASSES)
    panels = panels_of(picture, 7)
    assert picture.size[1] == picture_of(shown_of(), CLASSES).size[1]
    # the ends of viridis
    assert tuple(panels[1][0, 0]) == (68, 1, 84)
    assert tuple(panels[1][-1, -1]) == (253, 231, 36)
    assert len(colours_of(panels[1])) == 3
    assert colours_of(panels[3]) == {(90,) * 3}


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e-30, -2.0])
def test_an_even_density_is_one_colour(value: float) -> None:
    density = np.full((4, 5), value, np.float32)
    density[0, 0] *= 1 + 1e-7
    panels = panels_of(picture_of(shown_of(density=density), CLASSES), 2)
    assert colours_of(panels[1]) == {(68, 1, 84)}


def dots(panel: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(n, 2) x and y of the black pixels."""
    return np.argwhere((panel == 0).all(axis=-1))[:, ::-1]


def test_nodes_lie_where_the_grid_says() -> None:
    """-1 and 1 are centres of pixels: at 10 panel pixels each, 5 from the edge."""
    corners = even(2, 2)
    nodes = panels_of(picture_of(small(corners), CLASSES), 2)[1]
    found = {tuple(place) for place in dots(nodes).tolist()}
    at = (4, 5, 394, 395)
    assert found == {(x, y) for x in at for y in at}


def small(grid: NDArray[np.floating], **others: Any) -> Shown:
    h, w = grid.shape[:2]
    return shown_of(
        grid=grid,
        sampled=np.zeros((3, h, w), np.uint8),
        deformed=np.zeros((h, w), np.uint8),
        **others,
    )


def test_x_comes_first() -> None:
    grid = np.zeros((1, 1, 2))
    grid[0, 0] = 0.5, -1.0
    nodes = panels_of(picture_of(small(grid), CLASSES), 2)[1]
    # pixel 29.25 of 40, its centre 10 * 29.75; row 0 as above
    assert dots(nodes).tolist() == [[297, 4], [298, 4], [297, 5], [298, 5]]


def test_nodes_lie_right_on_regions_that_are_not_square() -> None:
    label = np.zeros((10, 40), np.uint8)
    shown = small(
        even(2, 2), image=np.full((3, 10, 40), GREY, np.uint8), predicted=label,
        truth=label,
    )  # fmt: skip
    nodes = panels_of(picture_of(shown, CLASSES), 2)[1][:100]
    found = {tuple(place) for place in dots(nodes).tolist()}
    assert found == {(x, y) for x in (4, 5, 394, 395) for y in (4, 5, 94, 95)}


def test_dots_on_the_last_pixel_are_whole_and_outside_ones_absent() -> None:
    big = np.full((3, 800, 800), GREY, np.uint8)
    label = np.zeros((800, 800), np.uint8)
    grid = np.array([[[1.0, 1.0], [1.2, 0.0]]])
    shown = small(grid, image=big, predicted=label, truth=label)
    nodes = panels_of(picture_of(shown, CLASSES), 2)[1]
    assert dots(nodes).tolist() == [[398, 398], [399, 398], [398, 399], [399, 399]]


def test_many_nodes_are_thinned_out() -> None:
    nodes = panels_of(picture_of(small(even(200, 200)), CLASSES), 2)[1]
    # 200 nodes on 390 px: every third row and column, dots of 2 x 2
    assert len(dots(nodes)) == 67 * 67 * 4


def test_what_has_no_label_is_hatched() -> None:
    unknown = np.full((40, 40), 255, np.uint8)
    with_legend = picture_of(shown_of(truth=unknown), CLASSES)
    truth = panels_of(with_legend, 6)[5]
    assert colours_of(truth) == {(150,) * 3, (255,) * 3}
    assert 0.2 < (truth == 150).mean() < 0.3


def legend_of(picture: Image.Image) -> NDArray[np.uint8]:
    top = GAP + 2 * (PANEL_PX + LINE + GAP)
    return np.asarray(picture)[top:]


def test_the_legend_lists_what_occurs() -> None:
    legend = legend_of(picture_of(shown_of(), CLASSES))
    assert {(0, 158, 115), (213, 94, 0)} <= colours_of(legend)
    assert (1, 2, 3) not in colours_of(legend)
    unknown = np.full((40, 40), 255, np.uint8)
    hatched = legend_of(picture_of(shown_of(truth=unknown), CLASSES))
    # a quarter of a swatch of 24 x 16; blurred letters hold a few such pixels
    counts = [int((part == 150).all(axis=-1).sum()) for part in (legend, hatched)]
    assert counts[0] < 20
    assert counts[1] > 90


def test_a_long_legend_is_wrapped() -> None:
    many = [
        MaskClass(n, f"Class with a rather long name {n}", (n, 0, 0)) for n in range(40)
    ]
    labels = np.repeat(np.arange(40, dtype=np.uint8)[:, None], 40, axis=1)
    short = picture_of(shown_of(), CLASSES)
    shown = shown_of(truth=labels, predicted=labels, deformed=labels[:4, :5])
    long = picture_of(shown, many)
    assert long.width == short.width
    # five a row
    assert long.height == short.height + 7 * LINE
    assert {(n, 0, 0) for n in range(40)} <= colours_of(legend_of(long))


def test_a_title_is_a_line_above() -> None:
    plain, titled = (
        picture_of(shown_of(), CLASSES, title=title) for title in ("", "step\n500")
    )
    assert titled.height == plain.height + LINE + 4
    assert titled.width == plain.width


def test_a_break_in_a_title_or_a_name_is_a_blank() -> None:
    plain = tuple(replace(row, name=row.name.replace("\n", " ")) for row in CLASSES)
    broken = picture_of(shown_of(), CLASSES, title="step\n500")
    assert broken.tobytes() == picture_of(shown_of(), plain, title="step 500").tobytes()


def test_the_same_input_gives_the_same_bytes_and_stays_as_it_is(tmp_path: Path) -> None:
    shown = shown_of(density=np.random.default_rng(0).random((4, 5)))
    before = [array.copy() for array in vars(shown).values()]
    for name in ("a.png", "b.png"):
        publish_picture(tmp_path / name, picture_of(shown, CLASSES, title="t"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    for array, old in zip(vars(shown).values(), before, strict=True):
        assert np.array_equal(array, old)


def test_no_sum_of_the_density_matters() -> None:
    density = np.random.default_rng(0).random((4, 5))
    a, b = (
        picture_of(shown_of(density=k * density), CLASSES) for k in (1.0, 1024.0)
    )  # fmt: skip
    assert a.tobytes() == b.tobytes()


@given(
    H=st.integers(1, 90),
    W=st.integers(1, 90),
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_any_shape_is_drawn(H: int, W: int, h: int, w: int, seed: int) -> None:  # noqa: N803  # the letters of the text
    random = np.random.default_rng(seed)
    labels = np.array([0, 1, 7, 255], np.uint8)
    shown = Shown(
        random.integers(256, size=(3, H, W), dtype=np.uint8),
        random.uniform(-1.1, 1.1, (h, w, 2)),
        random.integers(256, size=(3, h, w), dtype=np.uint8),
        random.choice(labels, (h, w)),
        random.choice(labels, (H, W)),
        random.choice(labels, (H, W)),
        random.random((h, w)) if seed % 2 else None,
    )
    picture = picture_of(shown, CLASSES)
    assert picture.mode == "RGB"
    assert max(picture.size) < 4 * (PANEL_PX + 3 * GAP) + 2 * GAP


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"image": np.zeros((40, 40, 3), np.uint8)}, r"image to show is \(40, 40, 3\)"),
        ({"image": np.zeros((3, 40, 40))}, "image to show is float64"),
        (
            {"image": np.zeros((3, 0, 40), np.uint8)},
            r"image .* \(3, 0, 40\), none of it 0",
        ),
        ({"grid": np.zeros((2, 4, 5))}, r"grid to show is \(2, 4, 5\)"),
        ({"grid": np.full((4, 5, 2), np.nan)}, "grid to show holds values that"),
        ({"sampled": np.zeros((3, 5, 4), np.uint8)}, "sampled to show"),
        ({"deformed": np.zeros((40, 40), np.uint8)}, "deformed to show"),
        ({"deformed": np.zeros((4, 5), np.int64)}, "deformed to show is int64"),
        ({"predicted": np.zeros((4, 5), np.uint8)}, "predicted to show"),
        ({"truth": np.zeros((40, 39), np.uint8)}, "truth to show"),
        ({"density": np.zeros((1, 4, 5))}, "density to show"),
        ({"density": np.full((4, 5), np.inf)}, "density to show holds values"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(RegionError, match=words):
        shown_of(**wrong)


@pytest.mark.parametrize("name", ["deformed", "predicted", "truth"])
def test_a_label_that_is_no_class_is_refused(name: str) -> None:
    shown = shown_of()
    labels = getattr(shown, name).copy()
    labels[0, 0] = 5
    with pytest.raises(RegionError, match="label 5 to show is no class; there are: 0"):
        picture_of(replace(shown, **{name: labels}), CLASSES)
