"""A learned resizer: a fixed filter with a small net that corrects it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_pipeline.errors import UnknownNameError

BASES = ("bilinear", "bicubic", "area", "antialias-bilinear")
"""Filters that a `Resizer` can start from."""

type Norm = Callable[[int], nn.Module]
"""Number of channels to what normalises them."""

group_norm: Norm = partial(nn.GroupNorm, 4)
"""Normalises each image by itself, in training too."""

_SLOPE = 0.2


def check_base(name: str) -> None:
    """Refuse a name that is no base filter.

    Raises
    ------
    UnknownNameError
        If it is not one of `BASES`; lists them.
    """
    if name not in BASES:
        raise UnknownNameError(
            f"unknown base filter {name!r}; there are: {', '.join(BASES)}"
        )


class Resizer(nn.Module):
    """Resizes an image with a base filter, and adds what a small net makes of it.

    It filters and does not move samples. The last convolution starts at zero, so a
    new resizer is its base filter exactly. Trained with the task's loss alone.

    Parameters
    ----------
    features : int
        Channels n of the net.
    blocks : int
        Residual blocks r; 0 or more.
    base : str
        One of `BASES`.
    norm : callable
        Number of channels to what normalises them: batch norm, as published, or
        `group_norm`.

    Raises
    ------
    UnknownNameError
        If there is no such base filter.

    Notes
    -----
    12 035 parameters for n = 16 and r = 1; each further block adds 4 672. Memory is
    about 3 n floats per pixel of the larger of the two images in inference. Borders
    are repeated before each convolution, so in eval mode a constant image stays
    constant after training too, though maybe with another value. In training, batch
    norm needs more than one pixel in the batch, and mixes its images.

    References
    ----------
    Talebi and Milanfar 2021, "Learning to Resize Images for Computer Vision Tasks",
    figure 3; the zero start, the repeated borders and the choice of base are ours.
    """

    def __init__(
        self,
        features: int = 16,
        blocks: int = 1,
        base: str = "bilinear",
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_base(base)
        self.base = base
        n = features
        self.before = nn.Sequential(
            nn.Conv2d(3, n, 7, padding=3, padding_mode="replicate"),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(n, n, 1),
            nn.LeakyReLU(_SLOPE),
            norm(n),
        )
        self.blocks = nn.Sequential(*(_Residual(n, norm) for _ in range(blocks)))
        self.after = nn.Sequential(_conv3(n), norm(n))
        self.last = nn.Conv2d(n, 3, 7, padding=3, padding_mode="replicate")
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]  # it has a bias

    def forward(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize, up or down.

        Parameters
        ----------
        image : (n, 3, H, W) float tensor
            Of any range.
        size : tuple of int
            h and w of the result; with H and W, the base filter is the identity.

        Returns
        -------
        (n, 3, h, w) tensor of the image's dtype
        """
        features = self._resized(self.before(image), size)  # (n, features, h, w)
        features = features + self.after(self.blocks(features))
        base = self._resized(image, size)
        correction: Tensor = self.last(features)
        return base + correction.to(base.dtype)

    def _resized(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """The base filter, computed in float32 or finer, in the image's dtype."""
        if image.shape[-2:] == torch.Size(size):
            return image
        # antialiasing knows no bfloat16 on CPUs, and 8 bits are too few for weights
        fine = image.to(torch.promote_types(image.dtype, torch.float32))
        mode = self.base.removeprefix("antialias-")
        antialias = mode != self.base
        out = functional.interpolate(fine, size, mode=mode, antialias=antialias)
        return out.to(image.dtype)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions added to what goes in."""

    def __init__(self, n: int, norm: Norm) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _conv3(n), norm(n), nn.LeakyReLU(_SLOPE), _conv3(n), norm(n)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(n, c, h, w) to the same."""
        out: Tensor = features + self.net(features)
        return out


def _conv3(n: int) -> nn.Conv2d:
    """A 3 x 3 convolution with repeated borders; the norm brings the bias."""
    return nn.Conv2d(n, n, 3, padding=1, padding_mode="replicate", bias=False)
