"""Says which remote slides are read over the network; the others are downloaded first.

OpenSlide opens local files only, and its formats need more than one request per tile.
"""

from wsi_pipeline.errors import SlideError
from wsi_pipeline.places import Place
from wsi_pipeline.readers.base import JPEG_2000
from wsi_pipeline.readers.files import TIFF_MAGIC, check_extension
from wsi_pipeline.readers.tiff_layout import JPEG, YCBCR, Layout

_MAKERS = {
    "ndpi": "Hamamatsu NDPI",
    "scn": "Leica SCN",
    "bif": "Ventana BIF",
    "philips": "Philips TIFF",
    "avs": "Argos AVS",
    "trestle": "Trestle TIFF",
}
_CURE = "download it first: over the network only plain tiled TIFF and SVS are read"


def check_tiff(place: Place, head: bytes, backends: tuple[str, ...]) -> None:
    """Refuse a remote file that is no TIFF, or a reader of local files.

    Parameters
    ----------
    place : Place
        The slide.
    head : bytes
        Its first bytes.
    backends : tuple of str
        Readers to try.

    Raises
    ------
    SlideError
        For those: other formats are read by OpenSlide, from local files only.
    """
    if backends != ("tiff",):
        raise SlideError(f"{place.name}: {backends[0]} opens local files only; {_CURE}")
    if not head.startswith(TIFF_MAGIC):
        check_extension(place, head)
        raise SlideError(f"{place.name}: is no TIFF; {_CURE}")


def check_layout(place: Place, layout: Layout) -> None:
    """Refuse a remote TIFF that is read through OpenSlide where it is local.

    Raises
    ------
    SlideError
        For formats of scanners other than Aperio, JPEG 2000, colour spaces that need
        a conversion, and Aperio levels with holes: only OpenSlide reads them right.
    """
    if layout.maker:
        raise SlideError(f"{place.name}: is a {_MAKERS[layout.maker]}; {_CURE}")
    if layout.compression in JPEG_2000:
        raise SlideError(f"{place.name}: is compressed as JPEG 2000; {_CURE}")
    converted = layout.photometric == YCBCR and layout.compression != JPEG
    if converted or layout.photometric > YCBCR:
        raise SlideError(f"{place.name}: needs its colours converted; {_CURE}")
    if layout.kind == "svs" and layout.has_holes:
        raise SlideError(f"{place.name}: has tiles that were not scanned; {_CURE}")
