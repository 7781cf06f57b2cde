"""Bags of patches with one label per task, from painted areas or from GlaS images."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.errors import ModelError
from wsi_pipeline.synthetic import paint_region

UNKNOWN = float("nan")
"""Label of a task that a bag says nothing about; it enters no loss."""

# Share of lesion (or gland) pixels from which a patch counts as showing it; below it
# and above 0 a patch is too doubtful to be put into a bag on purpose.
SHOWN = 0.05

_GLASS, _STROMA, _BENIGN = 0, 1, 2


@dataclass(frozen=True)
class Area:
    """A piece of tissue that patches are cut from.

    Parameters
    ----------
    pixels : (h, w, 3) uint8 array
    shown : (h, w) bool array
        Where there is what the labels are about.
    malignant : bool
        Label of the whole image, where it has one.
    """

    pixels: NDArray[np.uint8]
    shown: NDArray[np.bool_]
    malignant: bool = False

    def cut(
        self, patch_px: int, stride_px: int, rng: np.random.Generator | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Patches on a lattice, shifted at random where a generator is given.

        Returns
        -------
        patches : (n, 3, p, p) uint8 array
        share : (n,) float32 array
            Of each patch, how much is `shown`.
        """
        h, w = self.shown.shape
        free = (w - patch_px) % stride_px, (h - patch_px) % stride_px
        if rng is not None:
            free = stride_px - 1, stride_px - 1
        x0, y0 = (0, 0) if rng is None else (int(rng.integers(f + 1)) for f in free)
        windows = [
            (slice(y, y + patch_px), slice(x, x + patch_px))
            for y in range(y0, h - patch_px + 1, stride_px)
            for x in range(x0, w - patch_px + 1, stride_px)
        ]
        if not windows:
            return self.cut(patch_px, stride_px, None)
        patches = np.stack([self.pixels[window] for window in windows])
        share = [self.shown[window].mean() for window in windows]
        ordered = np.ascontiguousarray(patches.transpose(0, 3, 1, 2))
        return ordered, np.asarray(share, np.float32)


@dataclass(frozen=True)
class Bag:
    """Patches of one (composed) slide.

    Parameters
    ----------
    patches : (n, 3, p, p) uint8 array
    labels : (T,) float32 array
        1, 0 or UNKNOWN per task.
    shown : (n,) bool array
        Patches that show the lesion (or gland): for measuring, never for training.
    places_um : None
        Composed slides have no places.
    """

    patches: NDArray[np.uint8]
    labels: NDArray[np.float32]
    shown: NDArray[np.bool_]
    places_um: None = None

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def order(self) -> NDArray[np.int64]:
        """Ids of all patches."""
        return np.arange(len(self))

    def batches(
        self, ids: NDArray[np.int64], size: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Patches of some ids, `size` at a time."""
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            yield part, self.patches[part]


@dataclass(frozen=True)
class BagSize:
    """How a bag is composed.

    Parameters
    ----------
    patches : int
        Number n.
    share : tuple of float
        Smallest and largest share of patches that show the lesion in a positive bag,
        drawn log-uniformly; at least one patch does.
    """

    patches: int
    share: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> int:
        """Number of patches that show the lesion."""
        low, high = np.log(self.share)
        return int(np.clip(self.patches * np.exp(rng.uniform(low, high)), 1, None))


def paint_areas(
    seeds: Sequence[int],
    side_px: int,
    mpp: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[Area]:
    """Paint synthetic areas of all kinds: benign and with lesions, clean and with dirt.

    Parameters
    ----------
    seeds : sequence of int
        One area per seed; the seed decides its kind.
    side_px : int
        Side at `mpp`.

    Notes
    -----
    Most are painted at half the um/px and averaged, as pyramids are made; some pass
    through JPEG, as slides do.
    """
    areas = []
    for done, seed in enumerate(seeds):
        areas.append(_paint_area(seed, side_px, mpp))
        if progress is not None:
            progress(done + 1, len(seeds))
    return areas


def _paint_area(seed: int, side_px: int, mpp: float) -> Area:
    rng = np.random.default_rng(seed)
    mix = np.zeros(6)
    lesion = rng.random() < 0.4
    if lesion:
        mix[rng.choice([3, 4, 5], size=1 + int(rng.random() < 0.3), replace=False)] = 1
    benign = rng.choice(4, p=[0.3, 0.2, 0.1, 0.4])
    # glands with stroma and glass, glands, stroma, or glands and stroma
    mix[
        [[_GLASS, _STROMA, _BENIGN], [_BENIGN], [_STROMA], [_STROMA, _BENIGN]][benign]
    ] = 1
    if lesion and rng.random() < 0.2:
        mix[:3] = 0
    if not lesion and rng.random() < 0.04:
        mix[:] = [1, 0, 0, 0, 0, 0]
    fine = 2 if rng.random() < 0.8 else 1
    pixels, truth = paint_region(
        seed,
        (side_px * fine, side_px * fine),
        mpp / fine,
        mix=tuple(float(v) for v in mix),
        artefacts=bool(rng.random() < 0.5),
    )
    image = Image.fromarray(pixels)
    if rng.random() < 0.6:
        stream = BytesIO()
        image.save(stream, "JPEG", quality=int(rng.integers(70, 96)))
        image = Image.open(stream).convert("RGB")
    small = np.asarray(image.reduce(fine)) if fine > 1 else np.asarray(image)
    return Area(small, truth[::fine, ::fine] >= 3)


def read_glas(data_dir: Path, split: str) -> list[Area]:
    """Images of GlaS with where their glands are, of one split by patient.

    Raises
    ------
    ModelError
        If the data is not there.
    """
    root = data_dir / "labelled" / "glas"
    table = root / "split.csv"
    try:
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise ModelError(
            f"{table}: cannot read GlaS ({error.strerror}); set WSI_DATA or --data"
        ) from error
    areas = []
    for row in rows:
        if row["split"] == split:
            pixels = _image(root / "images" / f"{row['name']}.png", "RGB")
            mask = _image(root / "masks3" / f"{row['name']}.png", "L")
            areas.append(Area(pixels, mask > 0, row["grade"] == "malignant"))
    return areas


def _image(path: Path, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode))
    except OSError as error:
        raise ModelError(f"{path}: cannot read the image ({error})") from error


def compose_cancer(
    areas: Sequence[Area],
    patch_px: int,
    size: BagSize,
    positive: bool,
    rng: np.random.Generator,
) -> Bag:
    """A bag from several areas, with or without a lesion (task "cancer").

    Notes
    -----
    Negative bags hold patches without a single lesion pixel; positive ones also at
    least one that shows a lesion.
    """
    wanted = size.draw(rng) if positive else 0
    clean, lesions = _Pile(), _Pile()
    clean.add(_blanks(int(rng.integers(3)), patch_px, rng))
    for index in _forever(rng, len(areas)):
        if clean.count >= size.patches - wanted and lesions.count >= wanted:
            break
        patches, share = areas[index].cut(patch_px, patch_px, rng)
        clean.add(patches[share == 0])
        if wanted:
            lesions.add(patches[share >= SHOWN][: max(1, wanted)])
    parts = [clean.take(size.patches - wanted, rng)]
    if wanted:
        parts.insert(0, lesions.take(wanted, rng))
    shown = np.arange(size.patches) < wanted
    labels = np.array([positive], np.float32)
    return Bag(np.concatenate(parts), labels, shown)


def compose_glas(
    areas: Sequence[Area],
    patch_px: int,
    size: BagSize,
    kind: int,
    rng: np.random.Generator,
) -> Bag:
    """A bag of GlaS patches (tasks "malignant", "gland").

    Parameters
    ----------
    kind : int
        0: patches of one image. 1: few gland patches of one image among gland-free
        patches of others. 2: gland-free patches only.

    Notes
    -----
    "malignant" is the grade of the image; a bag without glands says nothing about it.
    """
    stride = patch_px // 2
    area = areas[int(rng.integers(len(areas)))]
    patches, share = area.cut(patch_px, stride, rng)
    if kind == 0:
        order = rng.permutation(len(patches))[: size.patches]
        labels = np.array([area.malignant, 1], np.float32)
        return Bag(patches[order], labels, share[order] >= SHOWN)
    wanted = size.draw(rng) if kind == 1 else 0
    glands, clean = _Pile(), _Pile()
    glands.add(patches[share >= 0.3])
    clean.add(_blanks(int(rng.integers(size.patches // 4)), patch_px, rng))
    wanted = min(wanted, glands.count)
    for index in _forever(rng, len(areas)):
        if clean.count >= size.patches - wanted:
            break
        patches, share = areas[index].cut(patch_px, stride, rng)
        clean.add(patches[share == 0])
    parts = [glands.take(wanted, rng), clean.take(size.patches - wanted, rng)]
    malignant = float(area.malignant) if wanted else UNKNOWN
    labels = np.array([malignant, wanted > 0], np.float32)
    return Bag(np.concatenate(parts), labels, np.arange(size.patches) < wanted)


def _blanks(count: int, patch_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Patches of empty glass, of black fill and of ink: slides hold whole ones."""
    shape = (count, 3, 1, 1)
    light = rng.random((count, 1, 1, 1)) < 0.7
    level = np.where(light, rng.uniform(225, 252, shape), rng.uniform(0, 40, shape))
    noise = rng.normal(0, rng.uniform(0, 4), (count, 3, patch_px, patch_px))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


class _Pile:
    """Patches that are being gathered."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.uint8]] = []
        self.count = 0

    def add(self, patches: NDArray[np.uint8]) -> None:
        self._parts.append(patches)
        self.count += len(patches)

    def take(self, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """`count` of them at random."""
        whole = np.concatenate(self._parts)
        return whole[rng.permutation(len(whole))[:count]]


def _forever(rng: np.random.Generator, count: int) -> Iterator[int]:
    """All indices in random order, again and again, for a while."""
    for _ in range(100):
        yield from rng.permutation(count).tolist()
    raise ModelError(f"{count} areas hold too few patches of the wanted kind for a bag")
