"""The least body there can be: what a package of somebody else's would hold."""

from torch import Tensor, nn


class OneConvolution(nn.Module):
    """A 3 x 3 convolution, some channels, and a head of 1 x 1."""

    def __init__(self, inputs: int, classes: int, *, channels: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(inputs, channels, 3, padding=1)
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(image).relu())
        return logits
