"""Writes the area of every class of a mask as CSV."""

import csv
from pathlib import Path

import numpy as np

from wsi_pipeline.exporters.accounts import ClassArea, counted_areas
from wsi_pipeline.exporters.exporter import Export, Exporter
from wsi_pipeline.inert import cell

COLUMNS = ("value", "class", "pixels", "area_mm2", "share_of_tissue")


def write_areas(path: Path, export: Export) -> tuple[ClassArea, ...]:
    """Write a row per class but the background, counted on the mask's base.

    Parameters
    ----------
    path : Path
        File to write.
    export : Export

    Returns
    -------
    tuple of ClassArea

    Raises
    ------
    ExportError
        If a value is no class of the mask.

    Notes
    -----
    The share is that of the tissue as it was found; empty where there is none, or
    where its area is not known.
    """
    totals = np.zeros(256, np.int64)
    for value, pixels in export.masks.count_pixels().items():
        totals[value] = pixels
    classes = counted_areas(export.masks, totals)
    tissue = export.tissue_mm2
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for kind in classes:
            mm2 = kind.area_um2 / 1e6
            share = f"{mm2 / tissue:.6g}" if tissue else ""
            row = (kind.value, cell(kind.name), kind.pixels, f"{mm2:.10g}", share)
            table.writerow(row)
    return classes


AREAS = Exporter("areas.csv", "Areas (CSV)", write_areas, frame="level0")
