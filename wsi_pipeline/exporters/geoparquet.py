"""Writes mask objects as GeoParquet: a table with an outline in every row."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from wsi_pipeline.exporters.exporter import Exporter, of_objects
from wsi_pipeline.exporters.geojson import identify
from wsi_pipeline.exporters.objects import Objects
from wsi_pipeline.exporters.sheet import Sheet

_ROW_GROUP_BYTES = 2**24
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "class": pa.string(),
        "value": pa.uint8(),
        "area_um2": pa.float64(),
        "perimeter_um": pa.float64(),
        "mean_probability": pa.float64(),
        "max_probability": pa.float64(),
        "selection_score": pa.float64(),
        "bbox": pa.struct([(side, pa.float64()) for side in _SIDES]),
        "geometry": pa.binary(),
    }
)


def write_geoparquet(path: Path, objects: Iterable[Objects], sheet: Sheet) -> None:
    """Write a table as a stream, a row per object in the order in which they come.

    Parameters
    ----------
    path : Path
        File to write.
    objects : iterable of Objects
        Outlines in the sheet's frame.
    sheet : Sheet

    Notes
    -----
    The coordinates are pixels, so the reference system is null: left out, readers
    would take them for degrees. What the file says of its frame is JSON under
    "wsi_pipeline" in its metadata. What is not known of an object is null.

    Memory: a row group of 16 MiB and a batch of objects.

    References
    ----------
    GeoParquet 1.1.0, "File metadata", "Column metadata", "Bounding Box Columns".
    """
    header = orjson.dumps(sheet.header())
    schema = _SCHEMA.with_metadata({"wsi_pipeline": header})
    kinds: set[str] = set()
    reach = np.empty((0, 4))
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        waiting: list[pa.RecordBatch] = []
        for batch in objects:
            waiting.append(_rows(batch, sheet))
            parts = np.diff(batch.outlines.objects)
            kinds.update(np.where(parts > 1, "MultiPolygon", "Polygon").tolist())
            reach = _hull(np.concatenate([reach, batch.outlines.bounds()]))
            if sum(rows.nbytes for rows in waiting) >= _ROW_GROUP_BYTES:
                file.write_table(pa.Table.from_batches(waiting))
                waiting.clear()
        file.write_table(pa.Table.from_batches(waiting, schema))
        geo = orjson.dumps(_geo(sorted(kinds), reach))
        file.add_key_value_metadata({"geo": geo})


def _rows(batch: Objects, sheet: Sheet) -> pa.RecordBatch:
    """The objects of a batch."""
    names = {kind.value: kind.name for kind in sheet.classes}
    sides = batch.outlines.bounds().astype(np.float64).T
    columns = {
        "id": list(identify(batch, sheet)),
        "class": [names[value] for value in batch.value.tolist()],
        "value": batch.value,
        "area_um2": batch.pixels * sheet.pixel_um2,
        "perimeter_um": batch.outlines.lengths((sheet.scale.x, sheet.scale.y)),
        "mean_probability": _known(batch.probability),
        "max_probability": _known(batch.highest),
        "selection_score": _known(batch.score),
        "bbox": pa.StructArray.from_arrays(list(map(pa.array, sides)), _SIDES),
        "geometry": shapely.to_wkb(batch.outlines.to_shapely(), byte_order=1),
    }
    return pa.record_batch(columns, _SCHEMA)


def _known(values: NDArray[np.float64]) -> pa.Array:
    """Numbers, null where they are NaN."""
    return pa.array(values, from_pandas=True)


def _hull(bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1, 4) bounds around all of (n, 4); (0, 4) around none."""
    if not len(bounds):
        return bounds
    low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    return np.concatenate([low, high])[None]


def _geo(kinds: list[str], reach: NDArray[np.float64]) -> dict[str, Any]:
    """The "geo" metadata; JSON values."""
    geometry: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": kinds,
        "crs": None,
        "edges": "planar",
        "orientation": "counterclockwise",  # where y goes up
        "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
    }
    if len(reach):
        geometry["bbox"] = reach[0].tolist()
    return {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": geometry},
    }


GEOPARQUET = Exporter(
    "segmentation.parquet",
    "Table of objects (GeoParquet)",
    of_objects(write_geoparquet),
)
