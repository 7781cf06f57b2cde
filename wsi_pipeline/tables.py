"""Reads and writes Parquet tables of patches, whose header is JSON in the metadata."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsi_pipeline.errors import RegionError


def write_table(
    path: Path, columns: dict[str, NDArray[Any]], header: dict[str, Any]
) -> None:
    """Write columns of equal length, and JSON values beside them."""
    table = pa.table(columns).replace_schema_metadata(
        {"wsi_pipeline": orjson.dumps(header, option=orjson.OPT_SORT_KEYS)}
    )
    pq.write_table(table, path, compression="zstd")


def read_table(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Read what `write_table` wrote: the table and the header.

    Raises
    ------
    RegionError
        If the file is no such table.
    """
    try:
        table = pq.read_table(path)
        return table, orjson.loads((table.schema.metadata or {})[b"wsi_pipeline"])
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise RegionError(f"{path}: no table of patches ({error})") from error


def column(table: pa.Table, name: str) -> NDArray[Any]:
    """A column by its name, (n,).

    Raises
    ------
    RegionError
        If there is none.
    """
    try:
        return np.asarray(table.column(name).to_numpy())
    except KeyError as error:
        raise RegionError(f"the table has no column {name!r}") from error
