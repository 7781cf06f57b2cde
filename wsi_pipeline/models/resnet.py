"""ResNet-18 as a patch encoder; alone in its file, as torchvision loads slowly."""

import torchvision
from torch import Tensor, nn

from wsi_pipeline.models.encoders import PatchInput, as_tensor


class ResNet18Encoder(nn.Module):
    """ResNet-18 with a projection to D; random weights until a file is loaded.

    Parameters
    ----------
    width : int
        Length D of an embedding.

    References
    ----------
    He et al., CVPR 2016; batch norm uses running statistics in eval mode.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = PatchInput()
        self.body = torchvision.models.resnet18(weights=None)
        self.body.fc = nn.Linear(self.body.fc.in_features, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches: (n, 3, p, p) to (n, D)."""
        return as_tensor(self.norm(self.body(self.input(patches))))
