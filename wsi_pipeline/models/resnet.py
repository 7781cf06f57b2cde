"""ResNets as patch encoders; alone in their file, as torchvision loads slowly."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torchvision
from torch import nn

from wsi_pipeline.models.backbones import BackboneEncoder


def _build(make: Callable[..., Any], width: int, *, frozen: bool) -> BackboneEncoder:
    """A ResNet with random weights until a file is loaded.

    References
    ----------
    He et al., CVPR 2016.
    """
    body = make(weights=None)  # Any: torchvision ships no types
    features = body.fc.in_features
    body.fc = nn.Identity()
    return BackboneEncoder(body, features, width, frozen=frozen)


_BUILD_18 = partial(_build, torchvision.models.resnet18)
_BUILD_50 = partial(_build, torchvision.models.resnet50)
resnet18 = partial(_BUILD_18, frozen=False)
resnet50 = partial(_BUILD_50, frozen=False)
resnet18_frozen = partial(_BUILD_18, frozen=True)
resnet50_frozen = partial(_BUILD_50, frozen=True)
