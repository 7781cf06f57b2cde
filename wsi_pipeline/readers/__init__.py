"""One door to every slide: picks a backend by format and compression, opens the file.

``READERS`` is the table of backends; a new one is a file and a row.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import MissingScaleError, SlideError
from wsi_pipeline.places import Place, as_place
from wsi_pipeline.readers.base import JPEG_2000, BackendSlide, GivenScale
from wsi_pipeline.readers.content import check_content
from wsi_pipeline.readers.files import TIFF_MAGIC, check_extension, check_file
from wsi_pipeline.readers.openslide import detect_vendor
from wsi_pipeline.readers.remote import check_tiff
from wsi_pipeline.readers.tiff_layout import (
    JPEG,
    YCBCR,
    check_whole,
    first_codes,
    has_holes,
)
from wsi_pipeline.registry import Registry
from wsi_pipeline.slide import Slide

READERS = Registry(
    "reader",
    {
        "tiff": "wsi_pipeline.readers.tiff:open_tiff",
        "openslide": "wsi_pipeline.readers.openslide:open_with_openslide",
    },
)
# formats of OpenSlide that are plain pyramids of tiles, which we read ourselves
_PLAIN = ("aperio", "generic-tiff")


def open_slide(
    path: Place | str,
    *,
    mpp: float | None = None,
    mpp_source: str = "--mpp",
    backend: str | None = None,
) -> Slide:
    """Open a brightfield slide.

    Parameters
    ----------
    path : Path, UPath or str
        The slide's main file (for MIRAX the ``.mrxs``, for DICOM the largest level), or
        the URL of a tiled TIFF or SVS (``s3://``, ``gs://``, ``https://``).
    mpp : float, optional
        um/px of level 0; wins over the file's own and may lie outside 0.05 to 10.
    mpp_source : str
        Who says so, for messages and the record: "--mpp" or "samplesheet".
    backend : str, optional
        Name in `READERS`; left out, chosen by format and compression.

    Returns
    -------
    Slide
        Picklable; reopens itself per process and after a read error.

    Raises
    ------
    NotASlideError
        If the file is something else: a picture, grey, fluorescence, a stack.
    MissingScaleError
        If nobody says how large a pixel is, or the file's value is impossible.
    SlideError
        If the file is missing, damaged or not supported.
    UnknownNameError
        If there is no such backend.
    ConfigError
        If it is a URL whose package is not installed.

    Notes
    -----
    Reads the overview once (at most 1024 x 1024 px) to see that it is brightfield.
    """
    path = as_place(path)  # absolute: a worker may have another working folder
    head = check_file(path)
    given = GivenScale(mpp, mpp_source)
    names = (backend,) if backend else choose_backends(path, head)
    if not isinstance(path, Path):
        check_tiff(path, head, names)
    slide = _open_first(path, given, names)
    check_content(slide)
    return slide


def choose_backends(path: Place, head: bytes) -> tuple[str, ...]:
    """Names of the backends to try, in order.

    Parameters
    ----------
    path : Path or UPath
        The slide; a remote one is read natively or not at all.
    head : bytes
        Its first bytes.

    Raises
    ------
    SlideError
        If a TIFF is cut short.

    Notes
    -----
    Plain TIFF and SVS are read natively, since OpenSlide interpolates levels whose
    downsample is no whole number. Not so JPEG 2000, colour spaces that need a
    conversion, and Aperio pyramids with holes: OpenSlide fills holes from finer levels,
    and what covers them in the next level, where such tiles are sometimes corrupt.
    What OpenSlide does not know is read natively if it is a TIFF.
    """
    if not isinstance(path, Path):
        return ("tiff",)
    if not head.startswith(TIFF_MAGIC):
        check_extension(path, head)
        return ("openslide",)
    vendor = detect_vendor(path)
    if vendor is None:
        return ("tiff",)
    compression, photometric = first_codes(path)
    if vendor not in _PLAIN:
        return ("openslide",)
    check_whole(path)
    ycbcr_outside_jpeg = photometric == YCBCR and compression != JPEG
    if compression in JPEG_2000 or ycbcr_outside_jpeg or photometric > YCBCR:
        return ("openslide", "tiff")
    if vendor == "aperio" and has_holes(path):
        return ("openslide",)
    return ("tiff",)


def _open_first(
    path: Place, given: GivenScale, names: tuple[str, ...]
) -> BackendSlide[Any]:
    """Open with the first backend that can; the first one's refusal else."""
    refusals: list[SlideError] = []
    for name in names:
        opener: Callable[[Place, GivenScale], BackendSlide[Any]] = READERS.load(name)
        try:
            return opener(path, given)
        except MissingScaleError:
            raise
        except SlideError as error:
            refusals.append(error)
    raise refusals[0]
