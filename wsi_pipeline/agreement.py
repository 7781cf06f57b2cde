"""Whether all results of a slide state the same area for every class."""

import csv
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import RegionError
from wsi_pipeline.exporters.sheet import Frame
from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import MaskPyramid, Pyramid
from wsi_pipeline.recounting import Recount, count_pixels, in_um2, recount
from wsi_pipeline.results import Manifest, SlideFolder

type _Areas = Mapping[str, float]  # um2 per class
type _Json = Mapping[str, Any]  # Any: what a manifest holds

_SLACK = 1e-9  # of an area: long sums of floats, and tables with ten digits
_SLACK_PX = 0.01


def find_disagreements(folder: SlideFolder) -> list[str]:
    """Compare the areas of all classes in label, manifest, tables and exports.

    Parameters
    ----------
    folder : SlideFolder
        Results of a slide that is done.

    Returns
    -------
    list of str
        A sentence per class on which they differ, and per export that says that it
        changed more than it can have; empty where all is well.

    Raises
    ------
    RegionError
        If there is no manifest of a slide that is done, or an export is lost or
        damaged.
    PyramidError
        If the label is lost or damaged.

    Notes
    -----
    From outlines, what the export says that it dropped, filled, simplified and cut off
    is undone. Memory: see `recount`.
    """
    manifest = Manifest.load(folder)
    if manifest is None or "export" not in manifest.facts:
        raise RegionError(f"{folder.path}: no manifest.json of a slide that is done")
    label = Pyramid(folder.pyramid).masks(manifest.model["name"])
    totals = count_pixels(label, label.levels[0].box)
    found: dict[str, _Areas] = {
        f"labels/{label.path.name}": in_um2(label, totals),
        "manifest.json": _without_background(
            label, manifest.facts["stitch"]["area_mm2"]
        ),
    }
    if row := _row(folder):
        areas = {
            name.removeprefix("area_mm2_"): float(text)
            for name, text in row.items()
            if name.startswith("area_mm2_") and text
        }
        found["slides.csv"] = _without_background(label, areas)
    told: list[str] = []
    for export in manifest.facts["export"]["files"]:
        seen = recount(folder.path / export["path"], label)
        outside = in_um2(label, _count_beyond(export["frame"], label))
        simplify_um = manifest.config["export"]["simplify_um"]
        told += _excesses(export, seen, simplify_um, outside, _SLACK_PX * _um2(label))
        found[export["path"]] = _undone(export, seen)
    names = dict.fromkeys(name for areas in found.values() for name in areas)
    differing = (_compare(name, found, _SLACK_PX * _um2(label)) for name in names)
    return [*filter(None, differing), *told]


def _um2(label: MaskPyramid) -> float:
    """Area of a pixel."""
    return label.scale.area_um2


def _without_background(label: MaskPyramid, mm2: _Areas) -> _Areas:
    """um2 of mm2."""
    hidden = {kind.name for kind in label.classes if not kind.value}
    return {name: area * 1e6 for name, area in mm2.items() if name not in hidden}


def _row(folder: SlideFolder) -> dict[str, str] | None:
    """The slide's row of slides.csv, where there is one."""
    path = folder.path.resolve().parent / "slides.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return next((row for row in rows if row["slide_id"] == folder.slide_id), None)


def _undone(export: _Json, seen: Recount) -> _Areas:
    """Areas in an export's file, without what it says that it changed."""
    areas = dict(seen.areas_um2)
    for kind in export["classes"]:
        lost = kind["dropped_um2"] + kind["outside_um2"]
        won = kind["filled_um2"] + kind["simplified_um2"]
        areas[kind["name"]] = areas.get(kind["name"], 0.0) + lost - won
    return areas


def _compare(name: str, found: Mapping[str, _Areas], slack_um2: float) -> str:
    """Who states which area of a class, where they differ; else nothing."""
    groups: list[tuple[float, list[str]]] = []
    for source, areas in found.items():
        area = areas.get(name, 0.0)
        for other, sources in groups:
            if abs(area - other) <= slack_um2 + _SLACK * max(area, other):
                sources.append(source)
                break
        else:
            groups.append((area, [source]))
    if len(groups) == 1:
        return ""
    said = (f"{area / 1e6:.10g} mm2 in {', '.join(who)}" for area, who in groups)
    return f"class {name!r}: {'; '.join(said)}"


def _excesses(
    export: _Json, seen: Recount, simplify_um: float, outside: _Areas, slack_um2: float
) -> Iterator[str]:
    """Where an export is to have changed more than it can have.

    What it says of simplification and of the frame's edge are differences of areas, so
    they would make up for any loss.
    """
    for kind in export["classes"]:
        name = kind["name"]
        most = simplify_um * seen.lengths_um.get(name, 0.0)
        most += slack_um2 + _SLACK * kind["area_um2"]
        if abs(kind["simplified_um2"]) > most:
            yield (
                f"class {name!r}: {export['path']} is to have changed by "
                f"{kind['simplified_um2']:.6g} um2 when it was simplified; {most:.6g} "
                "um2 are possible"
            )
        most += outside[name] + kind["filled_um2"]
        if kind["outside_um2"] > most:
            yield (
                f"class {name!r}: {export['path']} is to lack {kind['outside_um2']:.6g}"
                f" um2 beyond its frame; the label has {most:.6g} um2 there at most"
            )


def _count_beyond(frame: str, label: MaskPyramid) -> NDArray[np.int64]:
    """(256,) pixels per value of which a part lies outside of a frame."""
    box = Frame.of("qupath" if frame == "qupath" else "level0", label.source).box
    step, (w, h) = round(label.levels[0].downsample), label.levels[0].size_px
    x, y = -(-box.x // step), -(-box.y // step)
    right, bottom = max(x, box.right // step), max(y, box.bottom // step)
    strips = (
        Box(0, 0, w, y),
        Box(0, bottom, w, h - bottom),
        Box(0, y, x, bottom - y),
        Box(right, y, w - right, bottom - y),
    )
    return sum((count_pixels(label, strip) for strip in strips), np.zeros(256, int))
