"""Measures a trained arm on frames: at full resolution, at its nodes, at its bound."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import gaussian_blur

from wsi_pipeline.metrics import confusion
from wsi_pipeline.models.flops import count_flops
from wsi_pipeline.models.inverse import invert_grid
from wsi_pipeline.models.sampling import (
    TAPS,
    identity_grid,
    mip_levels,
    sample_image,
    sample_labels,
    sample_shares,
    tap_places,
)
from wsi_pipeline.models.segmenter import Segmented, SegmentNet
from wsi_pipeline.models.segmenting import COARSER_LEVELS
from wsi_pipeline.training.data import LabelledImages, first_level
from wsi_pipeline.training.losses import boundaries, boundary_density

TRIMAP_PX = 1, 2, 4, 8, 16, 32
"""Distances from a true boundary within which accuracy is measured."""


@dataclass(frozen=True)
class FrameScores:
    """What an arm reaches on n frames with k classes.

    Parameters
    ----------
    full : (n, k, k + 1) int64 array
        Confusion at full resolution.
    nodes : (n, k, k + 1) int64 array
        Confusion between nodes: the prediction against the largest share of a cell.
    bound : (n, k, k + 1) int64 array
        Confusion of the true shares, read back as a prediction is: what the sampler
        alone loses.
    near : (n, len(TRIMAP_PX), 2) int64 array
        Pixels within each distance of a true boundary: right ones, and all.
    flops : int
        Of one frame on average, placing included; a multiply-add counts 2.
    seconds : float
        Per megapixel of the frames, sampling and inverse included, on its device.
    """

    full: NDArray[np.int64]
    nodes: NDArray[np.int64]
    bound: NDArray[np.int64]
    near: NDArray[np.int64]
    flops: int
    seconds: float


@torch.no_grad()
def compare_frames(
    net: SegmentNet,
    data: LabelledImages,
    *,
    blur_px: float = 0.0,
    nodes: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
) -> FrameScores:
    """Segment every image as one region and compare it with the truth.

    Parameters
    ----------
    net : SegmentNet
        In eval mode.
    data : LabelledImages
        Images that the net has not seen.
    blur_px : float
        Sigma of a Gaussian that the pixels go through first: a fair arm does not gain.
    nodes : callable, optional
        Rows and columns of an image to those of its nodes; left out, the spec's.

    Returns
    -------
    FrameScores

    Notes
    -----
    Logits are read back bilinearly through the exact inverse, and the largest wins.
    """
    rows: list[tuple[NDArray[np.int64], ...]] = []
    flops, seconds, pixels = 0, 0.0, 0
    known_flops: dict[tuple[int, int], int] = {}
    for index in range(len(data)):
        frame = Frame.of(net, data, index, blur_px=blur_px, nodes=nodes)
        shape = frame.nodes
        if shape not in known_flops:
            known_flops[shape] = frame.count_flops()
        flops += known_flops[shape]
        start = time.perf_counter()
        result = frame.segment()
        logits, grid = result.logits.float(), result.grid
        found = frame.read_back(logits, grid).argmax(dim=1)[0].cpu().numpy()
        seconds += time.perf_counter() - start
        pixels += found.size
        shares = frame.shares(grid)
        known = shares.sum(dim=1)[0] > 0
        truth = torch.where(known, shares.argmax(dim=1)[0], 255).cpu().numpy()
        bound = frame.read_back(shares, grid).argmax(dim=1)[0].cpu().numpy()
        rows.append(
            (
                confusion(frame.truth, found, net.spec.classes),
                confusion(
                    truth, logits.argmax(dim=1)[0].cpu().numpy(), net.spec.classes
                ),
                confusion(frame.truth, bound, net.spec.classes),
                _near(frame.truth, found),
            )
        )
    full, at_nodes, bounds, near = (np.stack(part) for part in zip(*rows, strict=True))
    cost = flops // len(data), seconds / pixels * 1e6
    return FrameScores(full, at_nodes, bounds, near, *cost)


@dataclass(frozen=True)
class Frame:
    """One image as the region that a net sees.

    Parameters
    ----------
    net : SegmentNet
        In eval mode.
    nodes : (int, int)
        Rows and columns.
    levels : list of (1, 3, h_l, w_l) float tensors
        Pixels on mip levels `first`, `first` + 1, ... as in training.
    truth : (h, w) uint8 array
        Class per pixel.
    first : int
        The finest level at hand.
    """

    net: SegmentNet
    nodes: tuple[int, int]
    levels: list[Tensor]
    truth: NDArray[np.uint8]
    first: int

    @classmethod
    def of(
        cls,
        net: SegmentNet,
        data: LabelledImages,
        index: int,
        *,
        blur_px: float = 0.0,
        nodes: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
    ) -> "Frame":
        """An image of a dataset; see `compare_frames`."""
        truth = data.labels[index]
        h, w = truth.shape
        shape = nodes((h, w)) if nodes else net.spec.shape
        device = next(net.parameters()).device
        pixels = torch.from_numpy(data.images[index])[None].to(device).float() / 255
        if blur_px:
            side = 2 * max(1, round(3 * blur_px)) + 1
            pixels = gaussian_blur(pixels, [side, side], [blur_px, blur_px])
        first = first_level(net, (h, w), shape)
        levels = mip_levels(pixels, first + COARSER_LEVELS + 2)[first:]
        return cls(net, shape, levels, truth, first)

    def sample(self, grid: Tensor, taps: int) -> Tensor:
        """(1, h, w, 2) grid to (1, 3, h, w) pixels."""
        return sample_image(
            self.levels, grid, first=self.first, taps=taps, mip=taps > 1
        )

    def segment(self) -> Segmented:
        """What the net makes of it."""
        result: Segmented = self.net(*self._inputs())
        return result

    def count_flops(self) -> int:
        """FLOPs of `segment`, 2 per multiply-add."""
        return count_flops(self.net, *self._inputs())

    def _inputs(self) -> tuple[Any, ...]:
        """What the net takes."""
        given = self.true_density() if self.net.strategy.needs_truth else None
        return self.sample, 1, self.nodes, given

    def read_back(self, values: Tensor, grid: Tensor) -> Tensor:
        """(1, k, h, w) values of nodes to (1, k, H, W) of pixels."""
        back = invert_grid(grid, self.truth.shape)
        return functional.grid_sample(
            values, back, mode="bilinear", padding_mode="border", align_corners=True
        )

    def shares(self, grid: Tensor) -> Tensor:
        """(1, classes, h, w) share of each class in the nodes' cells."""
        return sample_shares(self._labels.to(grid.device), grid, self.net.spec.classes)

    def true_density(self) -> Tensor:
        """Density of the true boundaries, (1, 1, h, w)."""
        even = tap_places(identity_grid(*self.nodes), TAPS)
        labels = sample_labels(self._labels, even)
        density = boundary_density(labels, self.nodes, floor=self.net.spec.floor)
        return density.to(self.levels[0].device)

    @property
    def _labels(self) -> Tensor:
        return torch.from_numpy(self.truth)[None]


def _near(truth: NDArray[np.uint8], found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Right and all pixels within each distance of a true boundary, (d, 2)."""
    edge = boundaries(torch.from_numpy(truth)[None].long())[0].numpy()
    if not edge.any():
        return np.zeros((len(TRIMAP_PX), 2), np.int64)
    distance = distance_transform_edt(~edge)
    known, right = truth != 255, truth == found
    bands = [known & (distance < width) for width in TRIMAP_PX]
    return np.array([[int((band & right).sum()), int(band.sum())] for band in bands])
