"""Labelled images, and batches of regions drawn from them with augmentation."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models.sampling import cell_areas, mip_levels, sample_places
from wsi_pipeline.synthetic import paint_region

_SLANT_DEG = 15.0
_ZOOM = 0.78, 1.28
_FAR = 0.25
"""Share of regions of twice the side, as coarse regions are in use."""
_STAIN = 0.2


@dataclass(frozen=True)
class LabelledImages:
    """Images with a class for every pixel.

    Parameters
    ----------
    images : tuple of (3, h, w) uint8 arrays
        RGB.
    labels : tuple of (h, w) uint8 arrays
        Class per pixel; 255 = no label.
    names : tuple of str
        One per image.
    groups : tuple of str
        What is independent: the patient, or the seed.
    mpp : float
        um/px.
    """

    images: tuple[NDArray[np.uint8], ...]
    labels: tuple[NDArray[np.uint8], ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    mpp: float

    def __len__(self) -> int:
        return len(self.images)


def load_glas(data_dir: Path, split: str) -> LabelledImages:
    """Colon glands of GlaS, split by patient.

    Parameters
    ----------
    data_dir : Path
        Folder that holds ``labelled/glas``.
    split : str
        "train" or "val".

    Raises
    ------
    ConfigError
        If the folder or the split is not there.
    """
    folder = data_dir / "labelled" / "glas"
    try:
        with (folder / "split.csv").open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == split]
        images, labels = [], []
        for row in rows:
            with Image.open(folder / "images" / f"{row['name']}.png") as image:
                pixels = np.asarray(image.convert("RGB"))
            images.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            with Image.open(folder / "masks3" / f"{row['name']}.png") as mask:
                labels.append(np.array(mask))
    except OSError as error:
        raise ConfigError(f"{folder}: no GlaS data there ({error})") from error
    if not rows:
        raise ConfigError(f"{folder}/split.csv: no image in split {split!r}")
    names, patients = [row["name"] for row in rows], [row["patient_id"] for row in rows]
    return LabelledImages(
        tuple(images), tuple(labels), tuple(names), tuple(patients), 0.62
    )


def paint_images(seeds: Iterable[int], side_px: int, mpp: float) -> LabelledImages:
    """Painted tissue with exact labels: every second image is of one pattern mainly.

    Parameters
    ----------
    seeds : iterable of int
        One image each.
    side_px : int
        Side of an image; multiples of 512 are cheapest.
    mpp : float
        um/px.
    """
    images, labels, names = [], [], []
    for seed in seeds:
        # areas of all patterns side by side, or few and large as on a slide
        patch_um = (None, 400.0, 1200.0)[seed % 3]
        rgb, truth = paint_region(
            seed, (side_px, side_px), mpp, patch_um=patch_um, artefacts=seed % 4 == 0
        )
        images.append(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
        labels.append(truth)
        names.append(f"synthetic-{seed}")
    return LabelledImages(tuple(images), tuple(labels), tuple(names), tuple(names), mpp)


@dataclass(frozen=True)
class RegionBatch:
    """n regions of n images, each seen through its own similarity transform.

    Parameters
    ----------
    levels : list of (n, 3, h_l, w_l) float tensors
        Images, 0 to 1, on mip levels 1, 2, ...
    labels : (n, h, w) uint8 tensor
        On level 0.
    centre : (n, 2) float tensor
        x and y of the regions' centres, pixels of level 0.
    matrix : (n, 2, 2) float tensor
        From unit coordinates about the centre to pixels.
    stain : (n, 3, 1, 1) float tensor
        Factor on the optical density per channel.
    """

    levels: list[Tensor]
    labels: Tensor
    centre: Tensor
    matrix: Tensor
    stain: Tensor

    def sample(self, grid: Tensor) -> Tensor:
        """Pixels at the nodes of an (n, 2, h, w) grid: (n, 3, h, w), 0 to 1."""
        h, w = grid.shape[-2:]
        scale = torch.linalg.det(self.matrix).abs()[:, None, None, None]
        areas = cell_areas(grid) * scale / ((h - 1) * (w - 1))
        pixels = sample_places(
            self.levels, self._places(grid), areas, first=1, outside="reflection"
        )
        # Beer-Lambert: stain strength is a power of the transmitted light
        return pixels.clamp_min(1 / 255) ** self.stain

    @torch.no_grad()
    def tap_labels(self, grid: Tensor, taps: int) -> Tensor:
        """Classes at the taps of the nodes: (n, h * taps, w * taps) int64."""
        places = functional.interpolate(
            self._places(grid), scale_factor=taps, mode="bilinear"
        )
        h, w = self.labels.shape[-2:]
        x, y = _mirror(places[:, 0], w), _mirror(places[:, 1], h)
        nth = torch.arange(len(places), device=places.device)[:, None, None]
        return self.labels[nth, y, x].long()

    def _places(self, grid: Tensor) -> Tensor:
        """Unit coordinates to pixels of level 0, (n, 2, h, w)."""
        # no matrix product: autocast would round the places to bfloat16
        moved = (self.matrix[..., None, None] * (grid - 0.5)[:, None]).sum(dim=2)
        return moved + self.centre[:, :, None, None]


class RegionSource:
    """Draws batches of regions from images that are kept in memory.

    Parameters
    ----------
    data : LabelledImages
        Padded to a common size by mirroring.
    region_px : int
        Side of a region before zoom.
    levels : int
        Mip levels handed out, from level 1 on.
    """

    def __init__(self, data: LabelledImages, region_px: int, levels: int) -> None:
        h = max(label.shape[0] for label in data.labels)
        w = max(label.shape[1] for label in data.labels)
        self._images = torch.from_numpy(
            np.stack([_padded(image, h, w) for image in data.images])
        )
        self._labels = torch.from_numpy(
            np.stack([_padded(label, h, w) for label in data.labels])
        )
        halves = [mip_levels(one[None].float(), 2)[1] for one in self._images]
        self._halves = torch.cat(halves).round().to(torch.uint8)
        self.region_px = region_px
        self.levels = levels

    def draw(self, n: int, random: np.random.Generator, device: str) -> RegionBatch:
        """Draw n regions: any place, turn, slant, flip, zoom and stain."""
        which = torch.from_numpy(random.integers(len(self._images), size=n))
        low, high = (float(np.log(edge)) for edge in _ZOOM)
        zoom = np.exp(random.uniform(low, high, n))
        zoom *= np.where(random.random(n) < _FAR, 2.0, 1.0)
        turn = np.radians(
            90 * random.integers(4, size=n) + random.uniform(-_SLANT_DEG, _SLANT_DEG, n)
        )
        flip = random.choice([-1.0, 1.0], n)
        cos, sin = np.cos(turn), np.sin(turn)
        matrix = (
            np.stack(
                [np.stack([cos * flip, -sin], 1), np.stack([sin * flip, cos], 1)], 1
            )
            * (zoom * (self.region_px - 1))[:, None, None]
        )
        sides = np.array(self._labels.shape[:0:-1])  # w, h
        # a tenth of the region may hang over the image's edge
        margin = np.minimum(sides / 2, 0.4 * self.region_px * zoom[:, None])
        centre = random.uniform(margin, sides - margin) - 0.5
        stain = np.exp(
            random.normal(0, _STAIN / 2, (n, 3))
            + random.uniform(-_STAIN, _STAIN, (n, 1))
        )

        def tensor(values: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(device)

        half = self._halves[which].to(device).float() / 255
        return RegionBatch(
            mip_levels(half, self.levels),
            self._labels[which].to(device),
            tensor(centre),
            tensor(matrix),
            tensor(stain)[:, :, None, None],
        )


def class_shares(labels: Tensor, classes: int, taps: int) -> Tensor:
    """Share of each class in a cell, from the labels at its taps.

    Parameters
    ----------
    labels : (n, h * taps, w * taps) int64 tensor
        From `RegionBatch.tap_labels`; 255 counts for no class.

    Returns
    -------
    (n, classes, h, w) float32 tensor
    """
    planes = [(labels == value).float() for value in range(classes)]
    return functional.avg_pool2d(torch.stack(planes, dim=1), taps)


def _mirror(places: Tensor, size: int) -> Tensor:
    """Nearest pixel of a place, mirrored at the edges of the image."""
    folded = torch.remainder(places + 0.5, 2 * size)
    inside = torch.where(folded < size, folded, 2 * size - folded)
    return inside.floor().long().clamp(0, size - 1)


def _padded(values: NDArray[np.uint8], h: int, w: int) -> NDArray[np.uint8]:
    """Values mirrored at the edges to (..., h, w)."""
    above, left = (h - values.shape[-2]) // 2, (w - values.shape[-1]) // 2
    below, right = h - values.shape[-2] - above, w - values.shape[-1] - left
    lead = [(0, 0)] * (values.ndim - 2)
    return np.pad(values, [*lead, (above, below), (left, right)], mode="symmetric")
