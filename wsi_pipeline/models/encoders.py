"""Patch encoders: a batch of uint8 patches to one embedding each.

Every encoder is batch-independent in eval mode: a patch's embedding does not depend on
its neighbours in the batch.

A learned resizer before an encoder is part of it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from wsi_pipeline.models.resizer import Resizer, group_norm
from wsi_pipeline.registry import Registry

ENCODERS = Registry(
    "encoder",
    {
        "small": "wsi_pipeline.models.encoders:SmallEncoder",
        "resnet18": "wsi_pipeline.models.resnet:ResNet18Encoder",
    },
)

# Per-channel mean and deviation of ImageNet: the custom of torchvision's weights.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def build_encoder(
    name: str, width: int, resizer: str = "", resized_px: int = 0
) -> nn.Module:
    """Make an encoder from its name in the table, with fresh weights.

    Parameters
    ----------
    name : str
        "small" or "resnet18".
    width : int
        Length D of an embedding.
    resizer : str
        Base filter of a `Resizer` that patches pass first; "" for none.
    resized_px : int
        Side of the patches that the encoder then sees.

    Returns
    -------
    nn.Module
        Maps (n, 3, p, p) uint8 to (n, D) floats.

    Raises
    ------
    UnknownNameError
        If there is no such encoder or base filter.
    """
    encoder: nn.Module = ENCODERS.load(name)(width)
    return ResizedEncoder(encoder, resizer, resized_px) if resizer else encoder


class PatchInput(nn.Module):
    """Turns (n, 3, p, p) uint8 into normalised floats, on the patches' device."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", _MEAN), ("std", _STD)):
            column = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, column, persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Normalise; floats in [0, 1] are taken as they are."""
        return (_fractions(patches, self.mean.dtype) - self.mean) / self.std


def _fractions(patches: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes to floats in [0, 1]; floats are taken as they are."""
    pixels = patches.to(dtype)
    return pixels if patches.is_floating_point() else pixels / 255


class ResizedEncoder(nn.Module):
    """An encoder that sees patches through a learned resizer, trained with it.

    Parameters
    ----------
    encoder : nn.Module
        What sees the resized patches.
    base : str
        Base filter of the `Resizer`.
    side_px : int
        Side q of the resized patches; may be larger than p.

    Notes
    -----
    GroupNorm instead of the published batch norm, as in `SmallEncoder`: running
    statistics would drift to the salient patches, and those of a training batch would
    mix patches and count the blank ones that pad short bags.

    From 128 to 64 px, resizer and small encoder take 183 MFLOP per patch; the encoder
    alone takes 85 at 128 px and 21 at 64.

    References
    ----------
    Talebi and Milanfar 2021; see `Resizer`.
    """

    def __init__(self, encoder: nn.Module, base: str, side_px: int) -> None:
        super().__init__()
        self.resizer = Resizer(base=base, norm=group_norm)
        self.encoder = encoder
        self.side_px = side_px

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches: (n, 3, p, p) to (n, D)."""
        pixels = _fractions(patches, next(self.resizer.parameters()).dtype)
        resized = self.resizer(pixels, (self.side_px, self.side_px))  # (n, 3, q, q)
        return as_tensor(self.encoder(resized))


class SmallEncoder(nn.Module):
    """A 0.3 M parameter CNN for patches of about 128 px, GroupNorm throughout.

    Parameters
    ----------
    width : int
        Length D of an embedding.

    Notes
    -----
    GroupNorm instead of BatchNorm: the selection pass and the training step see
    different patches, and running statistics would drift to the salient ones.
    The last features see 87 px of the patch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = PatchInput()
        self.stem = _block(3, 32, kernel=7, stride=4)
        self.stage1 = _block(32, 32)
        self.down1 = _block(32, 64, stride=2)
        self.stage2 = _block(64, 64)
        self.down2 = _block(64, 128, stride=2)
        self.stage3 = _block(128, 128)
        self.project = nn.Linear(2 * 128, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches: (n, 3, p, p) to (n, D)."""
        x = self.stem(self.input(patches))
        x = x + self.stage1(x)
        x = self.down1(x)
        x = x + self.stage2(x)
        x = self.down2(x)
        x = x + self.stage3(x)
        # the mean tells the texture, the maximum the single odd structure
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return as_tensor(self.norm(self.project(pooled)))


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(inplace=True),
    )


def as_tensor(value: Any) -> Tensor:  # Any: nn.Module calls are untyped
    """Say to the type checker that a module's output is a tensor."""
    assert isinstance(value, Tensor)  # noqa: S101  # narrows the type only
    return value
