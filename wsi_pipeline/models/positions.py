"""Where patches lie, as vectors to add to their embeddings."""

import math

import torch
from torch import Tensor

from wsi_pipeline.errors import ConfigError

# um: a patch of a few cells, and the longer side of a glass slide with room to spare
_SHORTEST, _LONGEST = 100.0, 100_000.0


def check_width(width: int) -> None:
    """Refuse embeddings that places cannot be encoded in.

    Raises
    ------
    ConfigError
        If the width is no multiple of 4: a sine and a cosine, along x and along y.
    """
    if width % 4:
        raise ConfigError(
            f"places are encoded in embeddings whose width is a multiple of 4, got "
            f"{width}"
        )


def encode_positions(places_um: Tensor, width: int) -> Tensor:
    """Encode places on the slide as sines and cosines of many wavelengths.

    Parameters
    ----------
    places_um : (..., 2) tensor
        x, y from the top-left corner of the slide's level 0, um; the same at every
        resolution, and whatever part of the slide a pyramid holds.
    width : int
        Length D of an embedding.

    Returns
    -------
    (..., D) float64 tensor
        Half of it for x, half for y; in each the sines, then the cosines, of D / 4
        wavelengths from 100 um to 100 mm in equal ratios. In [-1, 1].

    Raises
    ------
    ConfigError
        If D is no multiple of 4.

    Notes
    -----
    The scalar product of two encodings depends on the shift between the places only.
    In float64: at 100 mm from the corner, float32 is up to 6e-4 off.

    References
    ----------
    Vaswani et al., NeurIPS 2017, section 3.5, in two dimensions and in um.
    """
    check_width(width)
    wavelengths = torch.logspace(
        math.log10(_SHORTEST),
        math.log10(_LONGEST),
        width // 4,
        dtype=torch.float64,
        device=places_um.device,
    )
    turns = places_um.double()[..., None] / wavelengths  # (..., 2, D / 4)
    angles = turns * (2 * math.pi)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)  # (..., D)
