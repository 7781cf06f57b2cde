"""Bodies of the package segmentation-models-pytorch, with a choice of encoders."""

import re
from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
import timm
from torch import nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.bodies.padding import PaddedBody

_HEADS = ("decoder.", "segmentation_head.")

# scales that an encoder has, the image itself included
_ALL_SCALES = 6

# with fewer channels per group than 2, group norm of a 1 x 1 feature is undefined
_GROUPS = 32


def smp_unet(
    inputs: int,
    classes: int,
    *,
    encoder: str = "resnet18",
    channels: Sequence[int] = (256, 128, 64, 32, 16),
) -> PaddedBody:
    """U-Net with an image-classification encoder.

    Parameters
    ----------
    inputs, classes : int
        Channels in and out.
    encoder : str
        A name of ``smp.encoders.get_encoder_names()``, or "tu-" and a timm model.
    channels : sequence of int
        Decoder channels per scale, coarsest first; their number is the depth.

    References
    ----------
    Ronneberger et al. 2015, "U-Net".
    """
    return _padded(
        inputs,
        smp.Unet(
            _known(encoder),
            encoder_depth=len(channels),
            encoder_weights=None,
            decoder_channels=tuple(channels),
            in_channels=inputs,
            classes=classes,
        ),
    )


def pspnet(
    inputs: int,
    classes: int,
    *,
    encoder: str = "resnet18",
    depth: int = 3,
    channels: int = 512,
    dropout: float = 0.2,
) -> PaddedBody:
    """Pyramid pooling over features at 1 / 2**depth.

    Parameters
    ----------
    inputs, classes, encoder
        See `smp_unet`.
    depth : int
        Halvings of the encoder, 3 to 5.
    channels : int
        Channels of the decoder.
    dropout : float
        Share of the decoder's channels dropped in training.

    References
    ----------
    Zhao et al. 2017, "Pyramid Scene Parsing Network".
    """
    return _padded(
        inputs,
        smp.PSPNet(
            _known(encoder),
            encoder_weights=None,
            encoder_depth=depth,
            psp_out_channels=channels,
            psp_dropout=dropout,
            in_channels=inputs,
            classes=classes,
            upsampling=2**depth,
        ),
    )


def deeplabv3plus(
    inputs: int,
    classes: int,
    *,
    encoder: str = "resnet18",
    channels: int = 256,
    rates: Sequence[int] = (12, 24, 36),
    stride: int = 16,
    dropout: float = 0.5,
) -> PaddedBody:
    """Dilated convolutions at several rates, joined with features at 1 / 4.

    Parameters
    ----------
    inputs, classes, encoder, channels, dropout
        See `pspnet`. Encoders that cannot be dilated are refused.
    rates : sequence of int
        Dilations of the 3 x 3 convolutions.
    stride : int
        Pixels per coarsest feature, 8 or 16.

    Notes
    -----
    It pools to 1 x 1 under batch norm: training needs batches of 2 or more.

    References
    ----------
    Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution".
    """
    return _padded(
        inputs,
        smp.DeepLabV3Plus(
            _known(encoder),
            encoder_weights=None,
            encoder_output_stride=stride,
            decoder_channels=channels,
            decoder_atrous_rates=tuple(rates),
            decoder_aspp_dropout=dropout,
            in_channels=inputs,
            classes=classes,
        ),
    )


def fpn(
    inputs: int,
    classes: int,
    *,
    encoder: str = "resnet18",
    channels: int = 128,
    pyramid_channels: int = 256,
    dropout: float = 0.2,
) -> PaddedBody:
    """Feature pyramid, its four scales brought to 1 / 4 and summed.

    Parameters
    ----------
    inputs, classes, encoder, dropout
        See `pspnet`.
    channels, pyramid_channels : int
        Channels of the summed features and of the pyramid; the former a multiple of
        32 from 64 on, as they are normalised in 32 groups.

    Raises
    ------
    ModelError
        If `channels` is another number.

    References
    ----------
    Kirillov et al. 2019, "Panoptic Feature Pyramid Networks".
    """
    if channels < 2 * _GROUPS or channels % _GROUPS:
        raise ModelError(
            f"channels is {channels}, expected a multiple of 32 from 64 on"
        )
    return _padded(
        inputs,
        smp.FPN(
            _known(encoder),
            encoder_weights=None,
            decoder_pyramid_channels=pyramid_channels,
            decoder_segmentation_channels=channels,
            decoder_dropout=dropout,
            in_channels=inputs,
            classes=classes,
        ),
    )


def segformer(
    inputs: int, classes: int, *, encoder: str = "mit_b0", channels: int = 256
) -> PaddedBody:
    """Transformer encoder (by default) with a decoder of 1 x 1 convolutions.

    Parameters
    ----------
    inputs, classes, encoder, channels
        See `pspnet`.

    References
    ----------
    Xie et al. 2021, "SegFormer".
    """
    return _padded(
        inputs,
        smp.Segformer(
            _known(encoder),
            encoder_weights=None,
            decoder_segmentation_channels=channels,
            in_channels=inputs,
            classes=classes,
        ),
    )


def _known(encoder: str) -> str:
    """The name, if it is one of the installed packages' own architectures."""
    timm_name = encoder.removeprefix("tu-")
    # timm resolves "hf-hub:..." and "local-dir:..." by a download or a file of a
    # card's choosing, so only plain names may reach it
    plain = re.fullmatch(r"\w+", timm_name, re.ASCII) is not None
    if timm_name != encoder and plain and timm.is_model(timm_name):
        return encoder
    names = smp.encoders.get_encoder_names()
    if encoder not in names:
        raise ModelError(
            f"unknown encoder {encoder!r}; there are 'tu-' with a timm model, and: "
            f"{', '.join(names)}"
        )
    return encoder


def _padded(inputs: int, net: Any) -> PaddedBody:  # Any: the package ships no types
    stride = net.encoder.output_stride
    if len(net.encoder.out_channels) < _ALL_SCALES:
        _drop_idle(net, inputs, 2 * stride)
    return PaddedBody(net, stride, _HEADS)


def _drop_idle(net: Any, inputs: int, side: int) -> None:  # Any: see _padded
    """Replace parts that the logits do not depend on by nothing.

    An encoder that is used up to some scale only still holds its coarser stages:
    for a ResNet-18 at 1 / 8 they are 94 % of its weights.
    """
    training = net.training
    weight = next(net.parameters())
    net.eval()(weight.new_zeros(1, inputs, side, side)).sum().backward()
    idle = [name for name, part in net.named_modules() if _is_idle(part)]
    for name in idle:
        parent, _, child = name.rpartition(".")
        if parent not in idle:
            setattr(net.get_submodule(parent), child, nn.Identity())
    net.zero_grad()
    net.train(training)


def _is_idle(part: nn.Module) -> bool:
    """Whether it has weights and none got a gradient."""
    weights = list(part.parameters())
    return bool(weights) and all(weight.grad is None for weight in weights)
