"""A small U-Net: the body of the density net and of the segmenter."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class UNet(nn.Module):
    """Encoder and decoder of 3 x 3 convolutions with one skip per scale.

    Parameters
    ----------
    inputs, outputs : int
        Channels in and out.
    widths : sequence of int
        Channels per scale, finest first; each scale halves the side.

    References
    ----------
    Ronneberger et al. 2015, "U-Net", with padding, batch norm and bilinear upsampling.
    """

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        before = (inputs, *widths[:-1])
        self.down = nn.ModuleList(
            _pair(a, b) for a, b in zip(before, widths, strict=True)
        )
        self.up = nn.ModuleList(
            _pair(coarse + fine, fine)
            for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h, w)."""
        skips: list[Tensor] = []
        x = image
        for block in self.down:
            x = block(functional.max_pool2d(x, 2, ceil_mode=True) if skips else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = functional.interpolate(x, size=skip.shape[-2:], mode="bilinear")
            if x.requires_grad:
                x.register_hook(_packed)  # type: ignore[no-untyped-call]  # torch
            x = block(torch.cat([x, skip], dim=1))
        out: Tensor = self.head(x)
        return out


def _packed(gradient: Tensor) -> Tensor:
    """What `cat` hands back has gaps, which upsampling on a CPU reads slowly."""
    return gradient.contiguous(memory_format=torch.channels_last)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
