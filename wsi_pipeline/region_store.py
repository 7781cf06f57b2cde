"""Region predictions on disk: written by rows, read by rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from wsi_pipeline.errors import RegionError
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import STRICT
from wsi_pipeline.regions import RegionPrediction


class RegionStore:
    """Region predictions on disk: a Zarr group of three arrays, one row per region.

    Parameters
    ----------
    path : Path
        Folder of the store (``predictions.zarr``).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls,
        path: Path,
        boxes: Sequence[Box],
        kinds: Sequence[int],
        classes: int,
        size_px: tuple[int, int],
    ) -> Self:
        """Make a store of n boxes, and room for a prediction of (w, h) nodes in each.

        Parameters
        ----------
        path : Path
            Folder that does not exist yet.
        boxes : sequence of Box
            n, level-0 pixels.
        kinds : sequence of int
            n, DETAIL or COARSE.
        classes : int
        size_px : tuple of int
            (w, h) nodes.
        """
        group = zarr.create_group(path, zarr_format=3)
        (w, h), n = size_px, len(boxes)
        for name, shape, dtype in (
            ("probabilities", (n, classes, h, w), "float16"),
            ("grid", (n, 2, h, w), "float32"),
            ("boxes", (n, 5), "int64"),
        ):
            whole = name == "boxes"
            chunks = tuple(max(1, s) for s in (shape if whole else (1, *shape[1:])))
            group.create_array(
                name,
                shape=shape,
                dtype=dtype,
                chunks=chunks,
                compressors=ZstdCodec(checksum=True),
                config=STRICT,
            )
        if n:
            rows = [
                [b.x, b.y, b.w, b.h, kind] for b, kind in zip(boxes, kinds, strict=True)
            ]
            _array(group, "boxes")[:] = np.array(rows, dtype=np.int64)
        return cls(path)

    def put(self, start: int, regions: Sequence[RegionPrediction]) -> list[Path]:
        """Write consecutive regions, the first at row `start`; returns their files."""
        group = zarr.open_group(self.path, mode="r+")
        stop = start + len(regions)
        _array(group, "probabilities")[start:stop] = np.stack(
            [r.probabilities for r in regions]
        )
        _array(group, "grid")[start:stop] = np.stack([r.grid for r in regions])
        return [
            self._file(_array(group, name), row)
            for name in ("probabilities", "grid")
            for row in range(start, stop)
        ]

    def boxes(self) -> tuple[list[Box], NDArray[np.int64]]:
        """All boxes, and all kinds as an (n,) int64 array."""
        rows = self._rows("boxes", slice(None))
        return [Box(*(int(v) for v in row[:4])) for row in rows], rows[:, 4]

    def get(self, region: int) -> RegionPrediction:
        """One region by its row.

        Raises
        ------
        RegionError
            If it was never written, or the store is damaged.
        """
        return self.read([region])[0]

    def read(self, regions: Sequence[int]) -> list[RegionPrediction]:
        """Several regions by their rows; see `get`."""
        boxes, kinds = self.boxes()
        with self._explained():
            group = self._open()
            arrays = [_array(group, name) for name in ("probabilities", "grid")]
            columns = [[self._row(a, region) for region in regions] for a in arrays]
        return [
            RegionPrediction(boxes[region], values, grid, int(kinds[region]))
            for region, values, grid in zip(regions, *columns, strict=True)
        ]

    def _row(self, array: Any, region: int) -> NDArray[Any]:
        """A region's chunk, decoded here: in a third of the time that Zarr takes."""
        data = Zstd().decode(self._file(array, region).read_bytes())
        values = np.frombuffer(data, array.dtype.newbyteorder("<"))
        return values.reshape(array.shape[1:])

    def _file(self, array: Any, region: int) -> Path:
        """A region's chunk."""
        corner = "0" * (array.ndim - 1)
        return self.path.joinpath(array.basename, "c", str(region), *corner)

    def _rows(self, name: str, which: slice) -> NDArray[Any]:
        with self._explained():
            return np.asarray(_array(self._open(), name)[which])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the store, with what to do about them."""
        try:
            yield
        except RegionError:
            raise
        except (ValueError, OSError, RuntimeError) as error:
            raise RegionError(
                f"{self.path}: incomplete or damaged, was every region written? "
                f"Run `wsi segment` again ({error})"
            ) from error

    def __len__(self) -> int:
        return int(_array(self._open(), "boxes").shape[0])

    def __iter__(self) -> Iterator[RegionPrediction]:
        return (self.get(region) for region in range(len(self)))

    def _open(self) -> zarr.Group:
        try:
            return zarr.open_group(self.path, mode="r")
        except (OSError, ValueError) as error:
            raise RegionError(
                f"{self.path}: no region predictions; `wsi segment` writes them"
            ) from error


def _array(group: zarr.Group, name: str) -> Any:  # Any: zarr's indexing is untyped
    # a chunk that was lost must not read as a region of probability 0
    array: Any = group[name]
    return array.with_config(STRICT)
