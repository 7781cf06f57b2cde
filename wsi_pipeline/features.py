"""Features that other programs extracted from a slide's patches, read by rows.

::

    features   (n, F) or (1, n, F) floats, a row per patch
    coords     (n, 2) or (1, n, 2) whole numbers: x, y of top-left corners, level-0 px

in an HDF5 file, as TRIDENT and CLAM write it, or in a Zarr group. Attributes of
`coords` may say more: TRIDENT's patch_size, patch_size_level0 and target_magnification
are understood, with 10 / magnification um/px, as TRIDENT has it. CLAM's features have
no attributes.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError, RegionError
from wsi_pipeline.geometry import Scale
from wsi_pipeline.publishing import list_files, sha256_file
from wsi_pipeline.regions import PatchGrid
from wsi_pipeline.registry import Registry

# h5py is optional: imported only where such a file is met
_OPENERS = Registry(
    "kind of features",
    {".h5": "h5py:File", ".hdf5": "h5py:File", ".zarr": "zarr:open_group"},
)
_PICKLED = ".pt", ".pth", ".pkl"
# What HDF5 and Zarr raise on missing, cut or foreign data, beside OSError.
_DAMAGE = OSError, RuntimeError, ValueError, KeyError, TypeError
_RUN = 1024  # rows that are read at once where some of them are wanted
_UM_AT_1X = 10.0

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class FeatureFile:
    """A file of features and what it says of the patches; holds no open handle.

    Parameters
    ----------
    path : Path
        HDF5 file or Zarr group.
    corners : (n, 2) int64 array
        x, y of each top-left corner, level-0 pixels; sorted by y, then x. The row
        number is the patch id.
    rows : (n,) int64 array
        Row in the file of each patch.
    width : int
        Length F of a feature.
    size_px : int or None
        Side of a patch in level-0 pixels, where the file states it.
    patch_px, mpp : int and float, or None
        Side in pixels and um/px at which patches were encoded, where it states them.
    """

    path: Path
    corners: NDArray[np.int64]
    rows: NDArray[np.int64]
    width: int
    size_px: int | None = None
    patch_px: int | None = None
    mpp: float | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read everything but the features.

        Raises
        ------
        RegionError
            If the file is missing, of another kind or damaged.
        ConfigError
            If it is HDF5 and h5py is not installed.
        """
        with _opened(path) as file:
            features = _Rows.of(file, "features", path)
            if features.array.dtype.kind != "f":
                raise RegionError(
                    f"{path}: features are {features.array.dtype}, expected floats"
                )
            coords = _Rows.of(file, "coords", path)
            if (coords.count, coords.width) != (features.count, 2):
                raise RegionError(
                    f"{path}: coords are {coords.count} x {coords.width}, expected "
                    f"x, y for each of {features.count} features"
                )
            found = coords.read(0, coords.count)
            facts = _facts({**file.attrs, **file["coords"].attrs})
        corners = found.astype(np.int64)
        if not np.array_equal(corners, found):
            raise RegionError(f"{path}: coords are not whole level-0 pixels")
        order = np.lexsort((corners[:, 0], corners[:, 1]))
        return cls(path, corners[order], order, features.width, *facts)

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def level0_mpp(self) -> float | None:
        """Um per level-0 pixel as the file has it, or None; the slide may say better.

        TRIDENT rounds to whole magnifications: what was trained on places of files has
        to be used with them.
        """
        if self.size_px is None or self.patch_px is None or self.mpp is None:
            return None
        return self.patch_px * self.mpp / self.size_px

    def grid(
        self, patch_px: int, mpp: float, scale: Scale, slide_px: tuple[int, int]
    ) -> PatchGrid:
        """The patches as a grid, checked against a selector and a slide.

        Parameters
        ----------
        patch_px, mpp : int and float
            Patches that the selector was made for.
        scale : Scale
            um/px of the slide's level 0.
        slide_px : tuple of int
            (width, height) of level 0.

        Returns
        -------
        PatchGrid
            Its ids are those of `batches`. The share of tissue is 1: the
            file does not state it, and whoever made it chose patches on tissue. Where
            it does not state the side of a patch, that follows from the selector's
            patches and the slide's scale.

        Raises
        ------
        RegionError
            If the patches are not those of the selector, or lie outside the slide.
        """
        for name, own, wanted in (
            ("px", self.patch_px, patch_px),
            ("um/px", self.mpp, mpp),
        ):
            if own is not None and abs(own / wanted - 1) > 0.01:
                raise RegionError(
                    f"{self.path}: its patches have {own:g} {name}, the selector was "
                    f"trained on {wanted:g} {name}"
                )
        outside = (self.corners < 0) | (self.corners >= slide_px)
        if outside.any():
            x, y = self.corners[outside.any(axis=1)][0]
            raise RegionError(
                f"{self.path}: patch at {x}, {y} lies outside the slide of "
                f"{slide_px[0]} x {slide_px[1]} px; the features of another slide?"
            )
        size_px = self.size_px or max(1, round(patch_px * mpp / scale.mean))
        tissue = np.ones(len(self), np.float32)
        return PatchGrid(self.corners, size_px, patch_px, mpp, tissue)

    @property
    def order(self) -> Ids:
        """(n,) ids in the file's order, in which features are read fastest."""
        order = np.empty(len(self), np.int64)
        order[self.rows] = np.arange(len(self))
        return order

    def batches(self, ids: Ids, size: int) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Features of patches in the order of `ids`, `size` at a time.

        Yields
        ------
        ids : (k,) int64 array
        features : (k, F) float32 array

        Raises
        ------
        RegionError
            If the file changed, is damaged, or a number is not finite.

        Notes
        -----
        Memory: a batch, and 1024 rows, or one chunk of the file if that has more. The
        file is open for as long as this goes on.
        """
        with _opened(self.path) as file:
            features = _Rows.of(file, "features", self.path)
            for start in range(0, len(ids), size):
                part = ids[start : start + size]
                yield part, self._pick(features, self.rows[part])

    def facts(self) -> dict[str, Any]:  # Any: JSON values
        """What is read."""
        return {"features": self.path.name, "width": self.width}

    def _pick(self, features: "_Rows", rows: Ids) -> NDArray[np.float32]:
        """Rows of the file; those in one chunk, or in adjoining ones, read together."""
        out = np.empty((len(rows), self.width), np.float32)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        run = max(_RUN, features.step) // features.step * features.step
        apart = np.diff(ascending) > features.step
        cuts = np.flatnonzero(apart | (np.diff(ascending // run) > 0)) + 1
        for part in np.split(order, cuts):
            first, last = rows[part[0]], rows[part[-1]]
            found = self._read(features, int(first), int(last) + 1)
            out[part] = found[rows[part] - first]
        return out

    def _read(self, features: "_Rows", start: int, stop: int) -> NDArray[np.float32]:
        if (features.count, features.width) != (len(self), self.width):
            raise RegionError(
                f"{self.path}: has changed: {features.count} x {features.width} "
                f"features, before {len(self)} x {self.width}"
            )
        found = features.read(start, stop).astype(np.float32)
        wrong = ~np.isfinite(found).all(axis=1)
        if wrong.any():
            raise RegionError(
                f"{self.path}: the feature in row {start + int(wrong.argmax())} holds "
                "numbers that are not finite; extract the slide's features again"
            )
        return found


@dataclass(frozen=True)
class _Rows:
    """A matrix in an open file, maybe with an axis of length 1 before it."""

    array: Any  # of h5py or zarr: their indexing is untyped
    count: int
    width: int
    step: int

    @classmethod
    def of(cls, file: Any, name: str, path: Path) -> Self:  # Any: see array
        if name not in file:
            raise RegionError(
                f"{path}: holds no {name!r}; expected features and coords, as TRIDENT "
                "and CLAM write them"
            )
        array = file[name]
        shape = array.shape
        lead = len(shape) == 3 and shape[0] == 1
        if len(shape) - lead != 2:
            raise RegionError(
                f"{path}: {name} has shape {tuple(shape)}, expected a row per patch; "
                "features of a whole slide cannot be selected from"
            )
        chunks = array.chunks  # None where HDF5 stores the array in one piece
        step = chunks[lead] if chunks else 1
        return cls(array, shape[lead], shape[lead + 1], int(step))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows from `start` to before `stop`."""
        lead = (0,) * (self.array.ndim - 2)
        return np.asarray(self.array[(*lead, slice(start, stop))])


def digest_features(path: Path) -> str:
    """sha256 over a file, or over the names and contents of a Zarr group's files, hex.

    Raises
    ------
    RegionError
        If it is missing or cannot be read.
    """
    if not path.exists():
        raise RegionError(f"{path}: no such file of features")
    try:
        files = [path] if path.is_file() else list(list_files(path))
        found = [(str(file.relative_to(path)), sha256_file(file)) for file in files]
    except OSError as error:
        raise RegionError(f"{path}: cannot be read: {error}") from error
    return hashlib.sha256(repr(found).encode()).hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:  # Any: see _Rows
    """Open a file of features; what goes wrong inside names the file."""
    kind = path.suffix.lower()
    if kind in _PICKLED:
        raise RegionError(
            f"{path}: a pickle, which may run any code when it is loaded; give the "
            "same features as HDF5 (CLAM: the folder h5_files; TRIDENT: --saveas h5)"
        )
    if kind not in _OPENERS.names():
        raise RegionError(
            f"{path}: features are read from {', '.join(_OPENERS.names())}"
        )
    if not path.exists():
        raise RegionError(f"{path}: no such file")
    try:
        make = _OPENERS.load(kind)
    except ModuleNotFoundError as error:
        if error.name != "h5py":
            raise
        raise ConfigError(
            f"{path}: reading HDF5 needs h5py: pip install 'wsi-pipeline[features]'"
        ) from error
    with ExitStack() as stack:
        try:
            file = make(path, mode="r")
            if hasattr(file, "close"):
                stack.callback(file.close)
            yield file
        except RegionError:
            raise
        except _DAMAGE as error:
            raise RegionError(f"{path}: cannot be read: {error}") from error


def _facts(
    attributes: Mapping[str, Any],  # Any: whatever a file holds
) -> tuple[int | None, int | None, float | None]:
    """Side at level 0, side and um/px as encoded; None for what is not stated."""

    def number(name: str) -> float | None:
        try:
            value = float(attributes[name])
        except (KeyError, TypeError, ValueError):  # TRIDENT writes None as a word
            return None
        return value if 0 < value < float("inf") else None

    size, side = number("patch_size_level0"), number("patch_size")
    magnification = number("target_magnification")
    size_px = None if size is None else round(size)
    if side is None or magnification is None:
        return size_px, None, None
    return size_px, round(side), _UM_AT_1X / magnification
