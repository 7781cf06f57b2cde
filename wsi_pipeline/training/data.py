"""Labelled images, and batches of regions drawn from them with augmentation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsi_pipeline.models.sampling import (
    cell_areas,
    mip_levels,
    sample_places,
    tap_places,
)
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.segmenting import read_level
from wsi_pipeline.training.colours import vary_colours

Pixels = NDArray[np.uint8]

_SLANT_DEG = 15.0
_ZOOM = 0.78, 1.28
_SHIFT = 0.1
_KEPT_BYTES = 4 * 2**30


@dataclass(frozen=True)
class LabelledImages:
    """Images with a class for every pixel.

    Parameters
    ----------
    images : sequence of (3, h, w) uint8 arrays
        RGB; they may be decoded as they are asked for.
    labels : sequence of (h, w) uint8 arrays
        Class per pixel; 255 = no label.
    names : tuple of str
        One per image.
    groups : tuple of str
        What is independent: the patient, or the seed.
    mpp : float
        um/px.
    """

    images: Sequence[Pixels]
    labels: Sequence[Pixels]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    mpp: float

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class RegionBatch:
    """n regions of n images, each seen through its own affine transform.

    Parameters
    ----------
    levels : list of (n, 3, h_l, w_l) float tensors
        Images, 0 to 1, on mip levels `first`, `first` + 1, ...
    labels : (n, h, w) uint8 tensor
        On level 0.
    centre : (n, 2) float tensor
        x and y of the regions' centres, pixels of level 0.
    matrix : (n, 2, 2) float tensor
        From grid coordinates, -1 to 1, to pixels about the centre.
    colours : tuple of int
        Per region, the seed of how its colours are varied; empty where they are not.
    first : int
        The finest level at hand.
    """

    levels: list[Tensor]
    labels: Tensor
    centre: Tensor
    matrix: Tensor
    colours: tuple[int, ...] = ()
    first: int = 1

    def sample(self, grid: Tensor, taps: int) -> Tensor:
        """Pixels at the nodes of an (n, h, w, 2) grid: (n, 3, h, w), 0 to 1.

        Each is the mean of taps x taps samples in its cell; one point for `taps` 1.
        """
        h, w = grid.shape[1:3]
        scale = 4 * torch.linalg.det(self.matrix).abs()[:, None, None, None]
        areas = cell_areas(grid) * scale / ((h - 1) * (w - 1))
        if taps == 1:
            areas = torch.zeros_like(areas)  # the finest level there is
        places = self._places(grid)
        pixels = sample_places(
            self.levels,
            places,
            areas,
            first=self.first,
            taps=taps,
            outside="reflection",
        )
        return vary_colours(pixels, self.colours) if self.colours else pixels

    @torch.no_grad()
    def tap_labels(self, grid: Tensor, taps: int) -> Tensor:
        """Classes at the taps of the nodes: (n, h * taps, w * taps) int64."""
        h, w = self.labels.shape[-2:]
        edges = grid.new_tensor([w, h])
        # from edge to edge is -1 to 1, so that edges are what is mirrored
        places = tap_places((self._places(grid) + 0.5) * (2 / edges) - 1, taps)
        nearest = functional.grid_sample(
            self.labels[:, None].to(places.dtype),
            places,
            mode="nearest",
            padding_mode="reflection",
            align_corners=False,
        )
        return nearest[:, 0].long()

    def _places(self, grid: Tensor) -> Tensor:
        """Grid coordinates to pixels of level 0, (n, h, w, 2)."""
        # no matrix product: autocast would round the places to bfloat16
        moved = (self.matrix[:, None, None] * grid[..., None, :]).sum(dim=-1)
        return moved + self.centre[:, None, None]


@dataclass(frozen=True)
class Views:
    """How regions are laid on images.

    Parameters
    ----------
    region_px : (int, int) or None
        Rows and columns of a region before zoom; None for those of its image, whose
        sides are then kept: no quarter turns, and batches of images of one size.
    whole : bool
        Regions are whole images, moved by up to a tenth of their sides; else they lie
        anywhere.
    far : float
        Share of regions of twice the side, as coarse regions are in use; none of whole
        images.
    """

    region_px: tuple[int, int] | None
    whole: bool = False
    far: float = 0.25


class RegionSource:
    """Draws batches of regions from labelled images.

    Parameters
    ----------
    data : LabelledImages
        Where they differ in size, smaller ones are mirrored at their edges.
    views : Views
        Size and place of the regions.
    levels : int
        Mip levels handed out.
    first : int
        The first of them.

    Notes
    -----
    Memory: what was drawn is kept, up to 4 GiB.
    """

    def __init__(
        self, data: LabelledImages, views: Views, levels: int, first: int = 1
    ) -> None:
        self._data = data
        self._views = views
        self._levels = levels
        self._first = first
        self._kept: dict[int, tuple[list[Pixels], Pixels]] = {}
        self._kept_bytes = 0

    def draw(self, n: int, random: np.random.Generator, device: str) -> RegionBatch:
        """Draw n regions: place, quarter turn, slant, flip, zoom and colours."""
        which = random.integers(len(self._data), size=n)
        if self._views.region_px is None:
            which[:] = which[0]  # its size is the batch's
        pyramids, labels = zip(*(self._item(int(i)) for i in which), strict=True)
        sides = np.array([label.shape[::-1] for label in labels], np.float64)  # w, h
        matrix, centre = self._affine(sides, random)
        colours = tuple(random.integers(2**31, size=n).tolist())

        def tensor(values: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(device)

        stacks = (_stacked(level) for level in zip(*pyramids, strict=True))
        return RegionBatch(
            [torch.from_numpy(s).to(device).float().div_(255) for s in stacks],
            torch.from_numpy(_stacked(labels)).to(device),
            tensor(centre),
            tensor(matrix),
            colours,
            self._first,
        )

    def _affine(
        self, sides: NDArray[np.float64], random: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n, 2, 2) matrices and (n, 2) centres for images of (n, 2) sides, x first."""
        n = len(sides)
        low, high = (float(np.log(edge)) for edge in _ZOOM)
        zoom = np.exp(random.uniform(low, high, n))
        if not self._views.whole:
            zoom *= np.where(random.random(n) < self._views.far, 2.0, 1.0)
        own = self._views.region_px is None
        quarters = random.integers(2, size=n) * 2 if own else random.integers(4, size=n)
        slant = random.uniform(-_SLANT_DEG, _SLANT_DEG, n)
        if own:  # a long strip that is turned leaves its image
            slant *= sides.min(axis=1) / sides.max(axis=1)
        turn = np.radians(90 * quarters + slant)
        flip = random.choice([-1.0, 1.0], n)
        cos, sin = np.cos(turn), np.sin(turn)
        turned = np.stack(
            [np.stack([cos * flip, -sin], 1), np.stack([sin * flip, cos], 1)], 1
        )
        px = self._views.region_px
        reach = (sides if px is None else np.array([px[::-1]] * n)) / 2 - 0.5  # x first
        matrix = turned * (zoom[:, None, None] * reach[:, None])
        if self._views.whole:
            shift = random.uniform(-_SHIFT, _SHIFT, (n, 2))
            return matrix, sides * (0.5 + shift) - 0.5
        # a tenth of the region may hang over the image's edge
        margin = np.minimum(sides / 2, 0.8 * reach * zoom[:, None])
        return matrix, random.uniform(margin, sides - margin) - 0.5

    def _item(self, index: int) -> tuple[list[Pixels], Pixels]:
        """Levels and labels of an image."""
        if index in self._kept:
            return self._kept[index]
        pixels = torch.from_numpy(self._data.images[index])[None].float()
        levels = [
            level[0].round().to(torch.uint8).numpy()
            for level in mip_levels(pixels, self._first + self._levels)[self._first :]
        ]
        label = np.ascontiguousarray(self._data.labels[index])
        size = label.nbytes + sum(level.nbytes for level in levels)
        if self._kept_bytes + size <= _KEPT_BYTES:
            self._kept[index] = levels, label
            self._kept_bytes += size
        return levels, label


def first_level(
    net: SegmentNet, size_px: tuple[int, int], nodes: tuple[int, int]
) -> int:
    """Finest level that a net is shown of regions of a size: 0, or 1 where it will do.

    Level 1 saves most of the pixels, and wide cells do not miss level 0.
    """
    return min(1, read_level(net, max(size_px), max(nodes)))


def _stacked(arrays: Sequence[Pixels]) -> Pixels:
    """Arrays of different sizes in one, mirrored at their right and lower edges."""
    h, w = (max(array.shape[axis] for array in arrays) for axis in (-2, -1))
    if all(array.shape[-2:] == (h, w) for array in arrays):
        return np.stack(arrays)
    padded = []
    for array in arrays:
        missing = (0, h - array.shape[-2]), (0, w - array.shape[-1])
        lead = [(0, 0)] * (array.ndim - 2)
        padded.append(np.pad(array, [*lead, *missing], mode="symmetric"))
    return np.stack(padded)
