"""Turns a selection into GeoJSON detections: QuPath colours patches by attention."""

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.config import ExportOptions
from wsi_pipeline.exporters.collection import write_collection
from wsi_pipeline.exporters.sheet import Frame, Sheet, packed_name
from wsi_pipeline.ngff import Source
from wsi_pipeline.publishing import staged
from wsi_pipeline.regions import PatchGrid, Selection

CHOSEN = MaskClass(1, "Selected patch", (0, 174, 239))
"""Class of the chosen patches: a blue that neither tissue nor our masks have."""

UNEXAMINED = MaskClass(2, "Patch not examined", (160, 160, 160))
"""Class of the patches that a screening left out; they have no measurements."""

MEASUREMENTS = {
    "Attention score": "share of the slide's attention, to 4 digits; all sum to 1",
    "Attention rank": "1 = the most salient; selection.parquet counts from 0",
    "Attention percentile": "patches in 100 that score no more, to 0.001",
}
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsi_pipeline/patch")
_ROWS = 4096  # patches that are Python objects at a time


def export_detections(
    selection: Selection,
    source: Source,
    path: Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008  # frozen
    *,
    slide_id: str,
    run: Mapping[str, str] | None = None,
) -> Path | None:
    """Write one detection per patch, a rectangle with what the selector made of it.

    Parameters
    ----------
    selection : Selection
        Its patches, in the order of their ids.
    source : Source
        The slide.
    path : Path
        File to publish; ".gz" or ".zip" is added as the options say.
    options : ExportOptions
        `detections`: all patches, the chosen ones, or no file. `frame`: patches are
        cut at its edge, those beyond it are left out.
    slide_id : str
        Name of the slide in the results; part of the patches' ids.
    run : mapping of str to str, optional
        Short facts (model, version), written once; part of the ids.

    Returns
    -------
    Path or None
        The file, where one was asked for.

    Raises
    ------
    ExportError
        If it cannot be written.

    Notes
    -----
    Memory: 80 bytes per patch, and what 4096 features take. A patch takes 320 bytes of
    the file, 55 with gzip: 10 and 1.6 MB for 30,000 patches.

    References
    ----------
    QuPath 0.7: Measure > Show measurement maps colours detections by a measurement.
    """
    if options.detections == "none":
        return None
    frame = Frame.of(options.frame, source)
    sheet = Sheet(
        slide_id,
        frame,
        source.scale,
        source.scale.area_um2,
        (CHOSEN,) if selection.weight is None else (CHOSEN, UNEXAMINED),
        tuple(sorted((run or {}).items())),
    )
    path = packed_name(path, options)
    rectangles = _rectangles(selection.grid, frame)
    shown = (rectangles[:, 2:] > rectangles[:, :2]).all(axis=1)
    if options.detections == "chosen":
        shown &= selection.chosen
    features = _features(selection, rectangles, np.flatnonzero(shown), sheet)
    with staged(path) as temporary:
        write_collection(temporary, features, sheet, measurements=MEASUREMENTS)
    return path


def _rectangles(grid: PatchGrid, frame: Frame) -> NDArray[np.int64]:
    """(n, 4) left, top, right, bottom in the frame's pixels, cut at its edge."""
    start = grid.corners - frame.offset_px
    corners = np.concatenate([start, start + grid.size_px], axis=1)
    return np.asarray(np.clip(corners, 0, [frame.box.w, frame.box.h] * 2), np.int64)


def _features(
    selection: Selection,
    rectangles: NDArray[np.int64],
    patches: NDArray[np.int64],
    sheet: Sheet,
) -> Iterator[bytes]:
    kinds = [{"name": c.name, "color": list(c.rgb)} for c in (CHOSEN, UNEXAMINED)]
    percent, examined = np.round(100 * selection.percentile, 3), selection.examined
    size = selection.grid.size_px
    told = "\n".join([sheet.slide_id, *(f"{k}={v}" for k, v in sheet.run), f"{size}"])
    for at in range(0, len(patches), _ROWS):
        part = patches[at : at + _ROWS]
        columns = (
            selection.grid.corners[part],
            rectangles[part],
            selection.score[part],
            selection.rank[part] + 1,
            percent[part],
            selection.chosen[part],
            examined[part],
        )
        for corner, (x, y, right, bottom), score, rank, most, chosen, seen in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            ring = [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]
            properties: dict[str, object] = {"objectType": "detection"}
            if seen:
                properties["measurements"] = {
                    "Attention score": float(f"{score:.4g}"),
                    "Attention rank": rank,
                    "Attention percentile": most,
                }
            if chosen or not seen:
                properties["classification"] = kinds[not seen]
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(_NAMESPACE, f"{told}\n{corner}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": properties,
            }
            yield orjson.dumps(feature)
