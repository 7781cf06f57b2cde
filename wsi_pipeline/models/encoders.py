"""Patch encoders: a batch of patches, pixels or features, to one embedding each.

Every encoder is batch-independent in eval mode: a patch's embedding does not depend on
its neighbours in the batch.

A learned resizer before an encoder is part of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsi_pipeline.errors import ConfigError, ModelError, UnknownNameError
from wsi_pipeline.models.cards import FEATURE_ENCODERS
from wsi_pipeline.models.resizer import Resizer, group_norm
from wsi_pipeline.registry import Registry

_RESNET, _TIMM = "wsi_pipeline.models.resnet", "wsi_pipeline.models.timm_encoder"
_OFFICIAL = "wsi_pipeline.models.official_encoders"
_FROZEN = "-frozen"

ENCODERS = Registry(
    "encoder",
    {
        "small": "wsi_pipeline.models.encoders:SmallEncoder",
        "resnet18": f"{_RESNET}:resnet18",
        "resnet50": f"{_RESNET}:resnet50",
        "resnet18-frozen": f"{_RESNET}:resnet18_frozen",
        "resnet50-frozen": f"{_RESNET}:resnet50_frozen",
        "coarse": "wsi_pipeline.models.encoders:CoarseEncoder",
    },
)
"""Encoders by name: callables that make one from its width D.

"-frozen" marks those that keep the batch statistics of pretrained weights.
"""

_DETAILED = Registry(
    "encoder",
    {
        "timm": f"{_TIMM}:build",
        "timm-frozen": f"{_TIMM}:build_frozen",
        "features": "wsi_pipeline.models.projector:FeatureEncoder",
        "ips": f"{_OFFICIAL}:OfficialImageEncoder",
        "ips-features": f"{_OFFICIAL}:OfficialFeatureEncoder",
    },
)
"""Those whose names go on after a colon; called with D and what follows it."""

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
        A name of `ENCODERS`, "timm:" with a model of timm, or "features:" with the
        length F of features that were extracted before.
    width : int
        Length D of an embedding.
    resizer : str
        Base filter of a `Resizer` that patches pass first; "" for none.
    resized_px : int
        Side of the patches that the encoder then sees.

    Returns
    -------
    nn.Module
        Maps (n, 3, p, p) uint8, or (n, F) floats, to (n, D) floats.

    Raises
    ------
    UnknownNameError
        If there is no such encoder or base filter.
    ModelError
        If the optional package timm is missing, or its model cannot be built.
    ConfigError
        If features shall be resized.
    """
    kind, colon, detail = name.partition(":")
    if kind not in (_DETAILED if colon else ENCODERS).names():
        raise UnknownNameError(
            f"unknown encoder {name!r}; there are: {', '.join(ENCODERS.names())}, "
            "timm:NAME, timm-frozen:NAME, features:LENGTH, ips:NAME, "
            "ips-features:LENGTH"
        )
    if resizer and reads_features(name):
        raise ConfigError("features have no pixels: leave --resizer out")
    encoder: nn.Module
    if colon:
        try:
            make = _DETAILED.load(kind)
        except ModuleNotFoundError as error:
            if error.name != "timm":
                raise
            raise ModelError(
                f"encoder {name!r} needs the package timm: "
                "pip install 'wsi-pipeline[bodies]'"
            ) from error
        encoder = make(width, detail)
    else:
        encoder = ENCODERS.load(kind)(width)
    return ResizedEncoder(encoder, resizer, resized_px) if resizer else encoder


def reads_features(name: str) -> bool:
    """Whether an encoder of this name reads features instead of pixels."""
    return name.startswith(FEATURE_ENCODERS)


def frozen_name(name: str) -> str:
    """Name of the same encoder with the batch statistics of pretrained weights."""
    kind, colon, detail = name.partition(":")
    known = (*ENCODERS.names(), *_DETAILED.names())
    return f"{kind}{_FROZEN}{colon}{detail}" if kind + _FROZEN in known else name


class PatchInput(nn.Module):
    """Turns (n, 3, p, p) uint8 into normalised floats, on the patches' device.

    Parameters
    ----------
    mean, std : sequence of float, optional
        Per channel, of pixels in [0, 1]; ImageNet's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean or _MEAN), ("std", std or _STD)):
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


class CoarseEncoder(nn.Module):
    """A 0.03 M parameter CNN for coarse patches of about 32 px, as screens see them.

    Parameters
    ----------
    width : int
        Length D of an embedding.

    Notes
    -----
    1.4 MFLOP per patch of 32 px: 1.7 % of what the small encoder takes at 128 px. One
    more stage, for twice the work, kept no fewer patches for the same recall.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = PatchInput()
        self.stem = _block(3, 16, stride=2)
        self.down1 = _block(16, 32, stride=2)
        self.down2 = _block(32, 64, stride=2)
        self.project = nn.Linear(2 * 64, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches: (n, 3, p, p) to (n, D)."""
        x = self.down2(self.down1(self.stem(self.input(patches))))
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
