"""The reduction of a pyramid: each pixel of a level is the mean of 2 x 2 below it."""

import cv2
import numpy as np
from numpy.typing import NDArray


def halve(
    planes: NDArray[np.uint8], out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Mean of each 2 x 2, rounded half up; an odd last row or column counts twice.

    Parameters
    ----------
    planes : (c, h, w) uint8 array
    out : (c, ceil(h / 2), ceil(w / 2)) uint8 array, optional
        Where to put it.

    Returns
    -------
    (c, ceil(h / 2), ceil(w / 2)) uint8 array

    Notes
    -----
    OpenCV's area mean of exactly 2 x 2 is ``(a + b + c + d + 2) >> 2``, vectorised; it
    releases the GIL.
    """
    c, h, w = planes.shape
    size = (w + 1) // 2, (h + 1) // 2
    if out is None:
        out = np.empty((c, *size[::-1]), np.uint8)
    if out.shape != (c, *size[::-1]):  # OpenCV would leave it as it is, without a word
        raise ValueError(f"half of {planes.shape} does not fit into {out.shape}")
    for plane, half in zip(planes, out, strict=True):
        even = plane
        if h % 2 or w % 2:
            even = cv2.copyMakeBorder(plane, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
        cv2.resize(even, size, dst=half, interpolation=cv2.INTER_AREA)
    return out
