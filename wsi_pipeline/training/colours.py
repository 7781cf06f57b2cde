"""Varies the colours of training regions as between laboratories and scanners."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density of haematoxylin, eosin and diaminobenzidine in R, G, B."""
_DARKEST = 1 / 255


class StainJitter(v2.Transform):  # type: ignore[misc]  # torchvision is untyped
    """Varies the amount of each stain, and the colours of the stains.

    Parameters
    ----------
    thickness : float
        All amounts are multiplied by one factor, exp(-thickness) to exp(thickness).
    amount : float
        Each stain's amount by another, exp(-amount) to exp(amount).
    hue : float
        The stains' optical density in R, G and B by exp(x) each, x normal with this
        deviation: dyes, lamps and sensors differ.

    References
    ----------
    Ruifrok and Johnston 2001, table of stain vectors; Tellez et al. 2018,
    "Whole-Slide Mitosis Detection in H&E Breast Histology", section III-C, for jitter
    of amounts.
    """

    _to_rgb: Tensor
    _to_hed: Tensor

    def __init__(
        self, thickness: float = 0.4, amount: float = 0.1, hue: float = 0.2
    ) -> None:
        super().__init__()
        self.thickness, self.amount, self.hue = thickness, amount, hue
        vectors = torch.tensor(_HED, dtype=torch.float64)
        vectors /= vectors.norm(dim=1, keepdim=True)
        self.register_buffer("_to_rgb", vectors.float(), persistent=False)
        self.register_buffer("_to_hed", vectors.inverse().float(), persistent=False)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factors, (3,) each; torchvision's hook."""
        del flat_inputs
        thickness, amount = torch.rand(1) * 2 - 1, torch.rand(3) * 2 - 1
        return {
            "amounts": torch.exp(self.thickness * thickness + self.amount * amount),
            "hues": torch.exp(self.hue * torch.randn(3)),
        }

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(..., 3, h, w) float pixels, 0 to 1, to the same; torchvision's hook."""
        density = -inpt.clamp_min(_DARKEST).log().movedim(-3, -1)
        amounts, hues, to_hed, to_rgb = (
            part.to(density)
            for part in (params["amounts"], params["hues"], self._to_hed, self._to_rgb)
        )
        # one map of optical densities: to amounts of stain, and back to other colours
        with torch.autocast(density.device.type, enabled=False):
            varied = density @ (to_hed * amounts @ to_rgb * hues)
        return (-varied).exp().clamp_max(1).movedim(-1, -3)


_VARY = StainJitter()


def vary_colours(pixels: Tensor, seeds: Sequence[int]) -> Tensor:
    """Give each image the colours of another staining and scanner.

    Parameters
    ----------
    pixels : (n, 3, h, w) float tensor
        0 to 1.
    seeds : sequence of int
        One per image: the same seed varies alike, whatever the image.

    Returns
    -------
    (n, 3, h, w) float tensor
        0 to 1; differentiable.

    Notes
    -----
    On GlaS, nets that had seen amounts varied alone lost up to 5 points of mIoU on
    patients whose sections are paler, and took a blurred image for a better one.
    """
    varied = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(pixels, seeds, strict=True):
            torch.default_generator.manual_seed(seed)  # the CPU's: drawn there
            varied.append(_VARY(image))
    return torch.stack(varied)
