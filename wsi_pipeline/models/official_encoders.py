"""Encoders as the official IPS code builds them, for weights trained by it."""

from typing import Self

import torchvision
from torch import Tensor, nn

from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.models.encoders import PatchInput, as_tensor
from wsi_pipeline.models.projector import FeatureEncoder

_WIDTHS = {"resnet18": 512, "resnet50": 2048}


class OfficialEncoder(nn.Module):
    """An encoder with the layers and the names of the official code.

    Its batch norms keep the statistics that they were loaded with, in training too.
    """

    net: nn.Sequential

    def train(self, mode: bool = True) -> Self:
        """Switch as any module, but for the batch norms: they stay in eval mode."""
        super().train(mode)
        self.net.eval()  # nothing else in it knows two modes
        return self


class OfficialImageEncoder(OfficialEncoder):
    """A ResNet up to its average pooling, which is the embedding.

    Parameters
    ----------
    width : int
        Length D of an embedding.
    name : str
        "resnet18" or "resnet50", all four stages.

    Raises
    ------
    UnknownNameError
        If the name is another.
    ConfigError
        If D is not what the ResNet gives: there is no projection.

    Notes
    -----
    Patches are normalised as for ImageNet, as the official traffic signs are.
    """

    def __init__(self, width: int, name: str) -> None:
        super().__init__()
        if name not in _WIDTHS:
            raise UnknownNameError(
                f"unknown encoder 'ips:{name}'; there are: ips:{', ips:'.join(_WIDTHS)}"
            )
        if width != _WIDTHS[name]:
            raise ConfigError(
                f"encoder 'ips:{name}' has embeddings of {_WIDTHS[name]}, got a width "
                f"of {width}"
            )
        body = getattr(torchvision.models, name)(weights=None)
        self.input = PatchInput()
        self.net = nn.Sequential(
            body.conv1,
            body.bn1,
            body.relu,
            body.maxpool,
            body.layer1,
            body.layer2,
            body.layer3,
            body.layer4,
            body.avgpool,
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches: (n, 3, p, p) to (n, D)."""
        return as_tensor(self.net(self.input(patches)).flatten(1))


class OfficialFeatureEncoder(OfficialEncoder, FeatureEncoder):
    """`FeatureEncoder` with batch norm where that has its second layer norm."""

    def __init__(self, width: int, inputs: str) -> None:
        super().__init__(width, inputs)
        self.net[2] = nn.BatchNorm1d(width)
