"""Writes what a comparison of masks found: tables for people and for programs."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from wsi_pipeline.evaluation.cohort import CohortScores, Interval
from wsi_pipeline.inert import cell, markdown_cell, shown
from wsi_pipeline.publishing import make_folder, publish_bytes, publish_json

_UM2_PER_MM2 = 1e6
_HEADS = (
    "class", "slides", "Dice", "95 % by patient", "IoU", "95 % by patient",
    "median Dice of slides", "predicted mm2", "truth mm2", "added mm2", "regions",
    "removed mm2", "regions", "not computed mm2",
)  # fmt: skip


def publish_scores(folder: Path, scores: CohortScores) -> None:
    """Write report.json and .md, and classes.csv, slides.csv and regions.csv.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    scores : CohortScores

    Raises
    ------
    ExportError
        If the folder cannot be written.
    """
    make_folder(folder)
    publish_json(folder / "report.json", scores.to_json())
    publish_bytes(folder / "report.md", ("\n".join(markdown(scores)) + "\n").encode())
    for name, rows in (
        ("classes.csv", _class_rows(scores)),
        ("slides.csv", _slide_rows(scores)),
        ("regions.csv", _region_rows(scores)),
    ):
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([cell(value) for value in row] for row in rows)
        publish_bytes(folder / name, buffer.getvalue().encode())


def markdown(scores: CohortScores) -> Iterator[str]:
    """What was compared, a table of classes, one of slides, and what was left out."""
    if scores.slides:
        middle, interval = scores.pooled()
        yield (
            f"slides: {len(scores.slides)}, patients: {scores.patients}, mIoU "
            f"{middle:.3f}{_between(interval)}"
        )
        yield ""
        yield f"| {' | '.join(_HEADS)} |"
        yield "|---|" + "--:|" * (len(_HEADS) - 1)
        for row in scores.rows():
            areas = row.areas
            cells = (
                markdown_cell(areas.kind.name),
                str(row.slides),
                f"{row.dice:.3f}",
                _between(row.dice_interval).strip(" ()"),
                f"{row.iou:.3f}",
                _between(row.iou_interval).strip(" ()"),
                f"{row.median_dice:.3f}",
                _mm2(areas.predicted_um2),
                _mm2(areas.truth_um2),
                _mm2(areas.added_um2),
                str(row.added) if areas.kind.value else "",
                _mm2(areas.removed_um2),
                str(row.removed) if areas.kind.value else "",
                _mm2(areas.not_computed_um2),
            )
            yield f"| {' | '.join(cells)} |"
    if len(scores.slides) > 1:
        names = [row.areas.kind.name for row in scores.rows()]
        yield ""
        heads = " | ".join(map(markdown_cell, names))
        yield f"| Dice of | mIoU | computed | {heads} |"
        yield "|---|--:|--:|" + "--:|" * len(names)
        for slide in scores.slides:
            own = slide.scores
            reached = (f"{own.dice[n]:.3f}" if n in own.dice else "" for n in names)
            told = f"{own.miou:.3f}", f"{own.computed_share:.0%}", *reached
            yield f"| {markdown_cell(slide.pair.name)} | {' | '.join(told)} |"
    for out in scores.left_out:
        yield f"left out: {shown(out.name)}: {shown(out.reason)}"


def _class_rows(scores: CohortScores) -> Iterator[Iterable[object]]:
    yield (
        "class", "slides", "dice", "dice_low", "dice_high", "iou", "iou_low",
        "iou_high", "median_dice", "predicted_um2", "truth_um2", "added_um2",
        "added_regions", "removed_um2", "removed_regions", "not_computed_um2",
    )  # fmt: skip
    for row in scores.rows():
        areas = row.areas
        yield (
            areas.kind.name, row.slides, row.dice, *(row.dice_interval or ("", "")),
            row.iou, *(row.iou_interval or ("", "")), row.median_dice,
            areas.predicted_um2, areas.truth_um2, areas.added_um2, row.added,
            areas.removed_um2, row.removed, areas.not_computed_um2,
        )  # fmt: skip


def _slide_rows(scores: CohortScores) -> Iterator[Iterable[object]]:
    yield (
        "slide", "patient", "class", "dice", "iou", "predicted_um2", "truth_um2",
        "added_um2", "added_regions", "removed_um2", "removed_regions",
        "not_computed_um2", "mpp", "left_out",
    )  # fmt: skip
    for slide in scores.slides:
        own = slide.scores
        mpp = slide.source.scale.coarser(slide.downsample).mean
        for areas in own.areas():
            name = areas.kind.name
            added, removed = slide.regions(name)
            yield (
                slide.pair.name, slide.pair.patient, name, own.dice.get(name, ""),
                own.iou.get(name, ""), areas.predicted_um2, areas.truth_um2,
                areas.added_um2, added, areas.removed_um2, removed,
                areas.not_computed_um2, mpp, "",
            )  # fmt: skip
    for out in scores.left_out:
        yield out.name, *([""] * 12), out.reason


def _region_rows(scores: CohortScores) -> Iterator[Iterable[object]]:
    """Boxes are level-0 pixels of the full slide."""
    yield "slide", "change", "class", "area_um2", "x_px", "y_px", "w_px", "h_px"
    for slide in scores.slides:
        own = slide.scores
        for change, found in (("added", slide.added), ("removed", slide.removed)):
            for region in found:
                box = region.box.scaled_up(slide.downsample)
                yield (
                    slide.pair.name, change, own.classes[region.value].name,
                    region.pixels * own.pixel_um2, box.x, box.y, box.w, box.h,
                )  # fmt: skip


def _mm2(area_um2: float) -> str:
    return f"{area_um2 / _UM2_PER_MM2:.4g}"


def _between(interval: Interval) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
