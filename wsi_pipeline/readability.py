"""Judges how much of a slide's tissue could not be decoded."""

from collections.abc import Sequence

import numpy as np

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import Tissue


def unreadable_share(tissue: Tissue, tiles: Sequence[Box]) -> float:
    """Share of the tissue that lies under tiles that could not be decoded, 0 to 1.

    Parameters
    ----------
    tissue : Tissue
        As found on the pyramid, where such tiles are white.
    tiles : sequence of Box
        Level-0 pixels.

    Notes
    -----
    All of a tile counts as tissue, whatever is around it: nobody knows what it shows,
    and half a slide that is lost would otherwise count for nothing.
    """
    lost = np.zeros_like(tissue.mask)
    for tile in tiles:
        box = tile.scaled_down(tissue.downsample)
        lost[box.rows, box.columns] = True
    most = int(np.count_nonzero(lost | tissue.mask))
    return int(np.count_nonzero(lost)) / most if most else 0.0


def check_readable(
    pyramid: Pyramid, tissue: Tissue, options: TissueOptions | None = None
) -> float:
    """Refuse a slide of which too much could not be decoded.

    Parameters
    ----------
    pyramid : Pyramid
        Says what could not be decoded.
    tissue : Tissue
        Found on it.
    options : TissueOptions, optional
        `max_unreadable`.

    Returns
    -------
    float
        See `unreadable_share`.

    Raises
    ------
    SlideError
        If it is more than allowed.
    """
    most = (options or TissueOptions()).max_unreadable
    tiles = pyramid.unreadable
    share = unreadable_share(tissue, tiles)
    if share > most:
        raise SlideError(
            f"{pyramid.source.name}: {len(tiles)} of its tiles cannot be decoded, "
            f"{percent(share)} of the tissue where {percent(most)} may be; copy it "
            "again from the scanner, or allow more ([tissue] max_unreadable)"
        )
    return share


def percent(share: float) -> str:
    """A share in words, with two digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
