"""Opens and reads Zarr arrays so that a lost chunk is an error, never background."""

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from wsi_pipeline.chunks import ChunkReader
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import STRICT
from wsi_pipeline.places import Place, explain, remote_errors

# What zarr and its codecs raise on a lost, cut or flipped chunk, beside OSError.
_DAMAGE = (RuntimeError, ValueError, KeyError)


def open_array(path: Place, mode: Any) -> Any:  # Any: zarr's literal type, indexing
    """Open an array.

    Raises
    ------
    PyramidError
        If there is none, or this zarr takes lost chunks for background.
    """
    try:
        array: Any = zarr.open_array(path, mode=mode, config=STRICT)
    except remote_errors(ValueError) as error:
        why = explain(path, error)
        raise PyramidError(f"{path}: no array there ({why})") from error
    if array.config.read_missing_chunks:
        raise PyramidError(
            f"{path}: zarr {zarr.__version__} reads lost chunks as background; install "
            "zarr 3.2 or newer"
        )
    return array


def read_box(array: Any, box: Box, path: Place) -> NDArray[np.uint8]:
    """Read a box that lies inside of an array.

    Parameters
    ----------
    array : zarr.Array
        (..., y, x) uint8, as `open_array` gives it.
    box : Box
        On its own grid.
    path : Path or UPath
        Its folder.

    Returns
    -------
    (..., h, w) uint8 array

    Raises
    ------
    PyramidError
        If a chunk of it is lost or damaged, or was never written.

    Notes
    -----
    Zarr itself takes a chunk that is missing inside a shard for empty; it reads what is
    in a store or has no shards.
    """
    chunks = ChunkReader.of(path, array)
    if chunks is not None:
        out = np.empty((*array.shape[:-2], box.h, box.w), np.uint8)
        chunks.read(box.blocks(array.chunks[-1]), box.x, box.y, out)
        return out
    try:
        return np.asarray(array[..., box.rows, box.columns])
    except remote_errors(*_DAMAGE) as error:
        why = explain(path, error)
        raise PyramidError(f"{path}: damaged, {box} cannot be read: {why}") from error
