"""Whole images as frames of one size: how segmenters are compared at equal pixels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import overload

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.training.data import LabelledImages, Pixels

_GLASS = 243.0, 243.0, 244.0
_NOISE = 1.5


class Mapped(Sequence[Pixels]):
    """Arrays made one by one as they are asked for.

    Parameters
    ----------
    count : int
        How many there are.
    make : callable
        Index to array.
    """

    def __init__(self, count: int, make: Callable[[int], Pixels]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, index: int | slice) -> Pixels | Sequence[Pixels]:
        places = range(self._count)[index]
        if isinstance(places, int):
            return self._make(places)
        return [self._make(place) for place in places]


def framed(data: LabelledImages, frame_px: tuple[int, int]) -> LabelledImages:
    """Every image resized to the same rows and columns.

    Parameters
    ----------
    data : LabelledImages
        Images of about that size and shape.
    frame_px : (int, int)
        Rows and columns.

    Returns
    -------
    LabelledImages
        Pixels bilinear, or area means where they shrink; labels nearest. `mpp` stays
        that of the originals.
    """
    h, w = frame_px

    def image(index: int) -> Pixels:
        pixels = np.ascontiguousarray(data.images[index].transpose(1, 2, 0))
        smaller = pixels.shape[0] > h or pixels.shape[1] > w
        how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        resized = cv2.resize(pixels, (w, h), interpolation=how)
        return np.ascontiguousarray(resized.transpose(2, 0, 1))

    def label(index: int) -> Pixels:
        found = cv2.resize(
            data.labels[index], (w, h), interpolation=cv2.INTER_NEAREST_EXACT
        )
        return found.astype(np.uint8, copy=False)

    count = len(data)
    return replace(data, images=Mapped(count, image), labels=Mapped(count, label))


def on_canvas(data: LabelledImages, *, seed: int = 0) -> LabelledImages:
    """Every image somewhere on glass of twice its sides, as tissue lies on a slide.

    Parameters
    ----------
    data : LabelledImages
        Images.
    seed : int
        Of the places and of the sensor's noise.

    Returns
    -------
    LabelledImages
        The image covers a quarter of the area; the rest is class 0.
    """

    def place(index: int) -> tuple[int, int, np.random.Generator]:
        h, w = data.labels[index].shape
        random = np.random.default_rng([seed, index])
        return int(random.integers(h + 1)), int(random.integers(w + 1)), random

    def image(index: int) -> Pixels:
        pixels = data.images[index]
        y, x, random = place(index)
        _, h, w = pixels.shape
        glass = random.normal(0, _NOISE, (3, 2 * h, 2 * w)).astype(np.float32)
        glass += np.array(_GLASS, np.float32)[:, None, None]
        out = np.clip(np.rint(glass), 0, 255).astype(np.uint8)
        out[:, y : y + h, x : x + w] = pixels
        return out

    def label(index: int) -> Pixels:
        y, x, _ = place(index)
        values = data.labels[index]
        h, w = values.shape
        out = np.zeros((2 * h, 2 * w), np.uint8)
        out[y : y + h, x : x + w] = values
        return out

    count = len(data)
    return replace(data, images=Mapped(count, image), labels=Mapped(count, label))


def merged(data: LabelledImages, values: NDArray[np.uint8]) -> LabelledImages:
    """Classes renamed by a table of 256 values; 255 should stay 255."""
    count = len(data)
    return replace(data, labels=Mapped(count, lambda i: values[data.labels[i]]))


def cropped(data: LabelledImages, side_px: int) -> LabelledImages:
    """Images cut into squares side by side, as regions lie on a slide.

    Parameters
    ----------
    data : LabelledImages
        Images of any size.
    side_px : int
        Side of a square.

    Returns
    -------
    LabelledImages
        Rows of squares, image by image, from each upper left corner; where a square
        hangs over the edge its pixels are white and its labels 255.
    """
    places = [
        (index, y, x)
        for index, label in enumerate(data.labels)
        for y in range(0, label.shape[0], side_px)
        for x in range(0, label.shape[1], side_px)
    ]

    def cut(values: Pixels, y: int, x: int) -> Pixels:
        part = values[..., y : y + side_px, x : x + side_px]
        out = np.full((*part.shape[:-2], side_px, side_px), 255, np.uint8)
        out[..., : part.shape[-2], : part.shape[-1]] = part
        return out

    def image(number: int) -> Pixels:
        index, y, x = places[number]
        return cut(data.images[index], y, x)

    def label(number: int) -> Pixels:
        index, y, x = places[number]
        return cut(data.labels[index], y, x)

    return LabelledImages(
        Mapped(len(places), image),
        Mapped(len(places), label),
        tuple(f"{data.names[index]} at {x}, {y}" for index, y, x in places),
        tuple(data.groups[index] for index, _, _ in places),
        data.mpp,
    )
