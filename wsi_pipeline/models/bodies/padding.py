"""Lets a net that needs sides of some multiple take images of any size."""

from torch import Tensor, nn
from torch.nn import functional


class PaddedBody(nn.Module):
    """Pads the image about its centre, runs a net, and crops the logits back.

    Parameters
    ----------
    net : nn.Module
        Maps (n, c, h, w) to (n, classes, h, w) if h and w are multiples.
    multiple : int
        Of what h and w must be multiples, in pixels.
    heads : tuple of str
        Prefixes, within `net`, of tensors that pretrained weights need not hold.

    Notes
    -----
    The border is mirrored; where the image is no wider than the margin its last row
    or column is repeated instead. From 16 px on and with multiples up to 32 it is
    always mirrored.
    """

    def __init__(self, net: nn.Module, multiple: int, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self.multiple = multiple
        self.head_prefixes = tuple(f"net.{head}" for head in heads)

    def forward(self, image: Tensor) -> Tensor:
        """(n, c, h, w) to (n, classes, h, w) logits."""
        h, w = image.shape[-2:]
        top, bottom = _margins(h, self.multiple)
        left, right = _margins(w, self.multiple)
        logits: Tensor = self.net(_pad(image, (left, right, top, bottom)))
        return logits[..., top : top + h, left : left + w]


def _margins(side: int, multiple: int) -> tuple[int, int]:
    """Pixels to add before and after a side."""
    missing = -side % multiple
    return missing // 2, missing - missing // 2


def _pad(image: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    """Add left, right, top and bottom margins."""
    if not any(margins):
        return image
    h, w = image.shape[-2:]
    mirrored = max(margins[:2]) < w and max(margins[2:]) < h
    return functional.pad(image, margins, mode="reflect" if mirrored else "replicate")
