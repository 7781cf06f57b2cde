"""Bags whose patches lie on disk: of tiled slides, of pictures, of feature files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.features import FeatureFile
from wsi_pipeline.feeding import PyramidSource
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid
from wsi_pipeline.results import SlideFolder
from wsi_pipeline.training.bag_training import Ids
from wsi_pipeline.training.datasets.files import read_rgb, size_of

Labels = NDArray[np.float32]

_QUEUE_BYTES = 256 << 20


@dataclass(frozen=True)
class TiledBag:
    """The patches of a slide that was tiled and whose tissue was found.

    Parameters
    ----------
    pyramid : Pyramid
        Read when patches are asked for.
    grid : PatchGrid
        Its patches.
    labels : (T,) float32 array
    """

    pyramid: Pyramid
    grid: PatchGrid
    labels: Labels

    @classmethod
    def open(cls, folder: SlideFolder, labels: Labels) -> Self:
        """Open a slide's results; reads no pixel.

        Raises
        ------
        ConfigError
            If there are none, or no patch is on tissue.
        PyramidError, RegionError
            If they cannot be read.
        """
        for path, verb in ((folder.pyramid, "tile"), (folder.patches, "tissue")):
            if not path.exists():
                raise ConfigError(f"{path}: not there; `wsi {verb}` makes it")
        grid = PatchGrid.load(folder.patches)
        if not len(grid):
            raise ConfigError(
                f"{folder.patches}: no patch on tissue, nothing to learn from; leave "
                "the slide out, or find its tissue with other options"
            )
        return cls(Pyramid(folder.pyramid), grid, labels)

    @property
    def places_um(self) -> NDArray[np.float64]:
        """Top-left corners, um."""
        scale = self.pyramid.source.scale
        places: NDArray[np.float64] = self.grid.corners * np.array([scale.x, scale.y])
        return places

    def __len__(self) -> int:
        return len(self.grid)

    @property
    def order(self) -> Ids:
        """Ids of all patches, block by block."""
        return self._source().order

    def batches(self, ids: Ids, size: int) -> Iterator[tuple[Ids, NDArray[np.uint8]]]:
        """Patches of some ids, `size` at a time."""
        return self._source().batches(ids, size)

    def _source(self) -> PyramidSource:
        return PyramidSource(self.pyramid, self.grid, _QUEUE_BYTES)


@dataclass(frozen=True)
class PictureBag:
    """A picture cut into patches that touch; those at its far edges are moved inside.

    Parameters
    ----------
    path : Path
        RGB, any usual format.
    corners : (n, 2) int64 array
        x, y of each patch.
    patch_px : int
    mpp : float
    labels : (T,) float32 array

    Notes
    -----
    Memory: the whole picture, whenever patches are asked for.
    """

    path: Path
    corners: NDArray[np.int64]
    patch_px: int
    mpp: float
    labels: Labels

    @classmethod
    def open(cls, path: Path, patch_px: int, mpp: float, labels: Labels) -> Self:
        """Cut a picture; reads its header only.

        Raises
        ------
        ConfigError
            If it cannot be read or is smaller than a patch.
        """
        h, w = size_of(path)
        if min(h, w) < patch_px:
            raise ConfigError(
                f"{path}: {w} x {h} px is smaller than a patch of {patch_px} px; "
                "--patch-px makes them smaller"
            )
        xs, ys = (
            np.minimum(np.arange(0, side, patch_px), side - patch_px) for side in (w, h)
        )
        y, x = np.meshgrid(ys, xs, indexing="ij")
        corners = np.stack([x.ravel(), y.ravel()], axis=1)
        return cls(path, corners, patch_px, mpp, labels)

    @property
    def places_um(self) -> NDArray[np.float64]:
        """Top-left corners in the picture, um."""
        return self.corners * np.float64(self.mpp)

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def order(self) -> Ids:
        """Ids of all patches."""
        return np.arange(len(self))

    def batches(self, ids: Ids, size: int) -> Iterator[tuple[Ids, NDArray[np.uint8]]]:
        """Patches of some ids, `size` at a time."""
        pixels, side = read_rgb(self.path), self.patch_px
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            corners = self.corners[part].tolist()
            cut = [pixels[:, y : y + side, x : x + side] for x, y in corners]
            yield part, np.stack(cut)


@dataclass(frozen=True)
class FeatureBag:
    """The features of a slide's patches.

    Parameters
    ----------
    file : FeatureFile
        Read when features are asked for.
    labels : (T,) float32 array
    """

    file: FeatureFile
    labels: Labels

    @classmethod
    def open(cls, path: Path, labels: Labels) -> Self:
        """Open a file; reads no feature.

        Raises
        ------
        ConfigError
            If it holds no patch.
        RegionError
            If it cannot be read.
        """
        file = FeatureFile.open(path)
        if not len(file):
            raise ConfigError(f"{path}: no patch, nothing to learn from; leave it out")
        return cls(file, labels)

    @property
    def places_um(self) -> NDArray[np.float64] | None:
        """Top-left corners, um; None where the file does not tell the scale."""
        mpp = self.file.level0_mpp
        return None if mpp is None else self.file.corners * np.float64(mpp)

    def __len__(self) -> int:
        return len(self.file)

    @property
    def order(self) -> Ids:
        """Ids of all patches, as the file has them."""
        return self.file.order

    def batches(self, ids: Ids, size: int) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Features of some ids, `size` at a time."""
        return self.file.batches(ids, size)
