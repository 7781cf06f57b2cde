"""Shows the patches with the most attention, and where on the slide they lie."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_pipeline.geometry import Box
from wsi_pipeline.pictures.drawing import Colour, outline, placed, whole_slide
from wsi_pipeline.pictures.legend import INK, MARGIN_PX, scale_bar, with_legend
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid, Selection

MOST_SHOWN = 24
_COLUMNS = 6
_SIDE_PX = 256
_WIDE = 2  # the map of a slide this many times wider than high lies above the patches
_TITLE_PX, _TEXT_PX, _LINE_PX = 24, 18, 24
_WHITE: Colour = (255, 255, 255)
_SOFT: Colour = (91, 100, 119)


def top_patches(pyramid: Pyramid, selection: Selection) -> Image.Image:
    """The chosen patches by rank, up to 24, beside a map with their numbers.

    Parameters
    ----------
    pyramid : Pyramid
        Image pyramid of the slide.
    selection : Selection
        Scores of all patches. Neighbours may be alike: none is left out.

    Returns
    -------
    RGB image
        Each patch as the selector saw it, enlarged or reduced to 256 px; below it its
        rank, its share of the attention, and its centre in mm where QuPath shows it,
        from the corner of the scan's bounds.

    Notes
    -----
    Memory: the picture twice, 2 x 11 MB, and one patch.
    """
    ranked = np.argsort(selection.rank, kind="stable")
    shown = ranked[selection.chosen[ranked]][:MOST_SHOWN]
    patches = _patches(pyramid, selection, shown)
    w, h = pyramid.source.size_px
    wide = w >= _WIDE * h
    longest_px = patches.width - MARGIN_PX if wide else 2 * _SIDE_PX
    overview = _map(pyramid, selection, shown, longest_px)
    x, y = MARGIN_PX, 3 * MARGIN_PX + _TITLE_PX + _LINE_PX
    if wide:
        place = x, y + overview.height + MARGIN_PX
    else:
        place = x + overview.width + MARGIN_PX, y
    size = place[0] + patches.width + MARGIN_PX, place[1] + patches.height
    sheet = Image.new("RGB", (size[0], max(size[1], y + overview.height)), _WHITE)
    draw = ImageDraw.Draw(sheet)
    title, line = _words(selection, shown)
    draw.text((x, MARGIN_PX), title, INK, _font(_TITLE_PX))
    draw.text((x, 2 * MARGIN_PX + _TITLE_PX), line, _SOFT, _font(_TEXT_PX))
    sheet.paste(overview, (x, y))
    sheet.paste(patches, place)
    um_per_px = selection.grid.patch_px * selection.grid.mpp / _SIDE_PX
    bar = scale_bar(um_per_px, _SIDE_PX / 2, "on a patch")
    return with_legend(np.asarray(sheet), [bar] if len(shown) else [])


def _words(selection: Selection, shown: NDArray[np.int64]) -> tuple[str, str]:
    """Title, and the line below it."""
    count, chosen = len(selection.grid), int(selection.chosen.sum())
    if not count:
        return "No tissue, so there is no patch", ""
    width_um = selection.grid.patch_px * selection.grid.mpp
    part, all_of_it = (
        f"{100 * share:.0f} %"
        for share in (selection.score[shown].sum(), selection.captured_mass)
    )
    examined = int(selection.examined.sum())
    looked = f" ({examined:,} examined)" if examined < count else ""
    return (
        f"Patches with the most attention: {len(shown)} of {chosen} chosen",
        f"Attention on those shown: {part}, on the chosen: {all_of_it}; patches in "
        f"all: {count:,}{looked}, each {width_um:.0f} um wide. Research use only, not "
        "for diagnosis.",
    )


def _patches(
    pyramid: Pyramid, selection: Selection, shown: NDArray[np.int64]
) -> Image.Image:
    """Rows of patches with their captions."""
    side = _SIDE_PX
    step_x, step_y = side + MARGIN_PX, side + 2 * _LINE_PX + MARGIN_PX
    rows = -(-len(shown) // _COLUMNS)
    canvas = Image.new("RGB", (step_x * _COLUMNS, step_y * rows), _WHITE)
    draw = ImageDraw.Draw(canvas)
    for number, patch in enumerate(shown.tolist()):
        x, y = number % _COLUMNS * step_x, number // _COLUMNS * step_y
        canvas.paste(_patch(pyramid, selection.grid, patch), (x, y))
        draw.rectangle([x, y, x + side - 1, y + side - 1], outline=(0, 0, 0))
        rank, share, centre = _caption(pyramid, selection, patch)
        first, second = y + side + _LINE_PX - 3, y + side + 2 * _LINE_PX - 3
        draw.text((x, first), rank, INK, _font(_TITLE_PX), anchor="ls")
        draw.text((x + side, first), share, INK, _font(_TEXT_PX), anchor="rs")
        draw.text((x + side, second), centre, _SOFT, _font(_TEXT_PX), anchor="rs")
    return canvas


def _caption(
    pyramid: Pyramid, selection: Selection, patch: int
) -> tuple[str, str, str]:
    """Rank, share of the attention and centre of a patch."""
    source, grid = pyramid.source, selection.grid
    x, y = (grid.corners[patch] + grid.size_px / 2).tolist()
    x_mm = (x - source.bounds.x) * source.scale.x / 1000
    y_mm = (y - source.bounds.y) * source.scale.y / 1000
    percent = 100 * float(selection.score[patch])
    share = f"{percent:.2f} %" if percent >= 0.01 else "< 0.01 %"
    return (
        str(selection.rank[patch] + 1),
        f"{share} of attention",
        f"x {x_mm:.3f}, y {y_mm:.3f} mm",
    )


def _patch(pyramid: Pyramid, grid: PatchGrid, patch: int) -> Image.Image:
    """A patch as the selector saw it."""
    seen = min(grid.patch_px, _SIDE_PX)
    mpp = grid.mpp * grid.patch_px / seen
    pixels = pyramid.read(grid.box(patch), mpp, (seen, seen)).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC)


def _map(
    pyramid: Pyramid, selection: Selection, shown: NDArray[np.int64], longest_px: int
) -> Image.Image:
    """The slide with the patches framed, and numbered where there is room."""
    picture = whole_slide(pyramid, longest_px)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, image.width - 1, image.height - 1], outline=(160, 160, 160))
    boxes = [placed(selection.grid.box(int(p)), pyramid, picture) for p in shown]
    for box in boxes:
        outline(draw, box)
    taken: list[Box] = []
    for number, box in enumerate(boxes, 1):
        w, h = 11 * len(str(number)) + 2, _TEXT_PX + 2
        x = box.right if box.w < w else box.x + (box.w - w) // 2
        y = box.y + (box.h - h) // 2
        x, y = max(0, min(x, image.width - w)), max(0, min(y, image.height - h))
        label = Box(x, y, w, h)
        if not any(label.intersect(other).area_px for other in taken):
            taken.append(label)
            middle = x + w / 2, y + h / 2
            draw.text(
                middle, str(number), INK, _font(_TEXT_PX), anchor="mm",
                stroke_width=2, stroke_fill=_WHITE,
            )  # fmt: skip
    return image


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
