"""Hangs pictures of what a net makes of a few regions while it is trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.pictures import publish_picture
from wsi_pipeline.training.comparing import Frame
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.showing import Shown, picture_of

_SHOWN = 3


class Gallery:
    """A folder of pictures, ``STRATEGY-STEPS-NUMBER.png``.

    Parameters
    ----------
    folder : Path
        Where they go.
    data : LabelledImages
        Validation regions; three that are spread over them are drawn.
    classes : sequence of MaskClass
        Colours and names.
    """

    def __init__(
        self, folder: Path, data: LabelledImages, classes: Sequence[MaskClass]
    ) -> None:
        self._folder, self._data, self._classes = folder, data, classes
        last = len(data) - 1
        self._places = sorted({round(k * last / _SHOWN) for k in range(_SHOWN)})

    def hang(self, strategy: str, net: SegmentNet, steps: int) -> None:
        """Draw what a net makes of the regions now.

        Raises
        ------
        ExportError
            If the folder cannot be written.
        """
        for number, index in enumerate(self._places):
            title = f"{strategy}, {steps} steps: {self._data.names[index]}"
            shown = show_region(net, self._data, index)
            picture = picture_of(shown, self._classes, title=title)
            file = self._folder / f"{strategy}-{steps:06d}-{number}.png"
            publish_picture(file, picture)


@torch.no_grad()
def show_region(net: SegmentNet, data: LabelledImages, index: int) -> Shown:
    """What a net sees of an image that is one region, and makes of it."""
    frame = Frame.of(net, data, index)
    result = frame.segment()
    found = frame.read_back(result.logits.float(), result.grid).argmax(dim=1)[0]
    density = result.density
    return Shown(
        data.images[index],
        _array(result.grid[0], np.float32),
        _array((frame.sample(result.grid, net.taps)[0] * 255).round(), np.uint8),
        _array(result.logits[0].argmax(dim=0), np.uint8),
        _array(found, np.uint8),
        frame.truth,
        None if density is None else _array(density[0, 0], np.float32),
    )


def _array[Scalar: (np.uint8, np.float32)](
    values: Tensor, kind: type[Scalar]
) -> np.ndarray[tuple[int, ...], np.dtype[Scalar]]:
    return values.cpu().numpy().astype(kind)
