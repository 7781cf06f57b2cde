"""Varies the colours of training regions: how much of each stain, then the scanner."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density of haematoxylin, eosin and diaminobenzidine in R, G, B."""
_DARKEST = 1 / 255


class StainJitter(v2.Transform):  # type: ignore[misc]  # torchvision is untyped
    """Scales and shifts the amount of each stain.

    Parameters
    ----------
    scale : float
        Each amount is multiplied by 1 - scale to 1 + scale.
    shift : float
        And moved by up to this much, in optical density.

    References
    ----------
    Ruifrok and Johnston 2001, table of stain vectors; Tellez et al. 2018,
    "Whole-Slide Mitosis Detection in H&E Breast Histology", section III-C.
    """

    _to_rgb: Tensor
    _to_hed: Tensor

    def __init__(self, scale: float = 0.2, shift: float = 0.02) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift
        vectors = torch.tensor(_HED, dtype=torch.float64)
        vectors /= vectors.norm(dim=1, keepdim=True)
        self.register_buffer("_to_rgb", vectors.float(), persistent=False)
        self.register_buffer("_to_hed", vectors.inverse().float(), persistent=False)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw scale and shift per stain; torchvision's hook."""
        del flat_inputs
        scale = 1 + self.scale * (2 * torch.rand(3) - 1)
        return {"scale": scale, "shift": self.shift * (2 * torch.rand(3) - 1)}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """(..., 3, h, w) float pixels, 0 to 1, to the same; torchvision's hook."""
        density = -inpt.clamp_min(_DARKEST).log().movedim(-3, -1)
        scale, shift, to_hed, to_rgb = (
            part.to(density)
            for part in (params["scale"], params["shift"], self._to_hed, self._to_rgb)
        )
        # one map of optical densities: to amounts, scaled and shifted, and back
        with torch.autocast(density.device.type, enabled=False):
            varied = density @ (to_hed * scale @ to_rgb) + shift @ to_rgb
        return (-varied).exp().clamp_max(1).movedim(-1, -3)


_VARY = v2.Compose(
    [StainJitter(), v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1)]
)


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
    """
    varied = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(pixels, seeds, strict=True):
            torch.manual_seed(seed)
            varied.append(_VARY(image))
    return torch.stack(varied)
