"""Patch encoders: a batch of uint8 patches to one embedding each.

Every encoder is batch-independent in eval mode: a patch's embedding does not depend on
its neighbours in the batch.
"""

from typing import Any

import torch
from torch import Tensor, nn

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


def build_encoder(name: str, width: int) -> nn.Module:
    """Make an encoder from its name in the table, with fresh weights.

    Parameters
    ----------
    name : str
        "small" or "resnet18".
    width : int
        Length D of an embedding.

    Returns
    -------
    nn.Module
        Maps (n, 3, p, p) uint8 to (n, D) floats.

    Raises
    ------
    UnknownNameError
        If the table has no such encoder.
    """
    encoder: nn.Module = ENCODERS.load(name)(width)
    return encoder


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
        pixels = patches.to(self.mean.dtype)
        if not patches.is_floating_point():
            pixels = pixels / 255
        return (pixels - self.mean) / self.std


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
