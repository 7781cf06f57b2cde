"""HRNetV2 as a body: features at four scales, joined at the finest of them."""

from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.bodies.padding import PaddedBody

WIDTHS = ("w18-small", "w18-small-v2", "w18", "w30", "w32", "w40", "w44", "w48", "w64")
"""Widths there are; the number is the channels of the finest scale."""

# each coarser scale halves the side, three times
_COARSEST = 8


def hrnet(
    inputs: int, classes: int, *, width: str = "w48", stem_stride: int = 1
) -> PaddedBody:
    """HRNetV2 with the "C1" head.

    Parameters
    ----------
    inputs, classes : int
        Channels in and out.
    width : str
        One of `WIDTHS`.
    stem_stride : int
        Stride of each of the two stem convolutions. 1 keeps the finest scale at the
        size of the image, as in Jin et al.; 2 is the usual net, whose logits at 1 / 4
        are upsampled.

    Raises
    ------
    ModelError
        If the width or the stride is another.

    References
    ----------
    Wang et al. 2020, "Deep High-Resolution Representation Learning for Visual
    Recognition"; stem and head as in Jin et al. 2022, "Learning to Downsample for
    Segmentation of Ultra-High Resolution Images".
    """
    if width not in WIDTHS:
        raise ModelError(
            f"unknown HRNet width {width!r}; there are: {', '.join(WIDTHS)}"
        )
    if stem_stride not in (1, 2):
        raise ModelError(f"stem_stride is {stem_stride}, expected 1 or 2")
    net = HRNet(inputs, classes, width, stem_stride)
    return PaddedBody(net, _COARSEST * stem_stride**2, ("head.",))


class HRNet(nn.Module):
    """Backbone and head; see `hrnet` for the parameters.

    Its input's sides must be multiples of 8 times the stem's stride squared.
    """

    def __init__(self, inputs: int, classes: int, width: str, stem_stride: int) -> None:
        super().__init__()
        # Any: to the checker every attribute of a module is a tensor or a module
        backbone: Any = timm.create_model(
            f"hrnet_{width.replace('-', '_')}",
            pretrained=False,
            in_chans=inputs,
            features_only=True,
            feature_location="",  # the scales themselves, not the classifier's
            out_indices=(1, 2, 3, 4),
        )
        for stem in (backbone.conv1, backbone.conv2):
            stem.stride = (stem_stride, stem_stride)
        self.backbone = backbone
        joined = sum(backbone.feature_info.channels())
        self.head = nn.Sequential(*_c1_head(joined, classes))

    def forward(self, image: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, classes, h, w) logits."""
        finest, *coarser = self.backbone(image)
        size = finest.shape[-2:]
        same_size = [functional.interpolate(c, size, mode="bilinear") for c in coarser]
        logits: Tensor = self.head(torch.cat([finest, *same_size], dim=1))
        if logits.shape[-2:] == image.shape[-2:]:
            return logits
        return functional.interpolate(logits, image.shape[-2:], mode="bilinear")


def _c1_head(joined: int, classes: int) -> Iterator[nn.Module]:
    """A 3 x 3 convolution to a quarter of the channels, then 1 x 1 to the classes."""
    yield nn.Conv2d(joined, joined // 4, 3, padding=1, bias=False)
    yield nn.BatchNorm2d(joined // 4)
    yield nn.ReLU(inplace=True)
    yield nn.Conv2d(joined // 4, classes, 1)
