"""What a slide is to the rest of the package: facts about it and a way to read it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Level, Scale
from wsi_pipeline.places import Place


@dataclass(frozen=True)
class JpegTiles:
    """How the tiles of level 0 are compressed, where they can be copied as they are.

    Parameters
    ----------
    side_px : int
        Side of a tile, which is square.
    colour : "YCBCR" or "RGB"
        Colour space inside the JPEG, whatever its markers say.
    tables : bytes or None
        Quantisation and Huffman tables that the tiles leave out.
    """

    side_px: int
    colour: str
    tables: bytes | None


@dataclass(frozen=True)
class SlideInfo:
    """Facts about a slide, from an allow-list: nothing that could name a patient.

    Parameters
    ----------
    path : Path or UPath
        The file that was opened, local or remote.
    backend : str
        Name in the table of readers ("openslide", "tiff").
    vendor : str
        Scanner family or file format, as the backend calls it.
    levels : tuple of Level
        Finest first; level 0 has downsample 1.
    scale : Scale
        um/px of level 0.
    scale_source : str
        Where the scale came from: "samplesheet", "--mpp", or the name of the metadata
        field.
    bounds : Box
        The part of level 0 that holds the scan (OpenSlide's bounds); all of level 0
        where the file states none. QuPath's frame starts at its corner.
    tile_px : tuple of int
        (width, height) of the native tiles of level 0.
    compression : str
        Compression of level 0, lower case ("jpeg"), or "unknown".
    background : tuple of int
        RGB of places that were not scanned.
    warnings : tuple of str
        Sentences that belong in the report (an unusual scale, anisotropic pixels).
    read_px : int
        Side of the box that is cheapest to read at once, level-0 pixels.
    jpeg : JpegTiles or None
        How level 0 can be copied without decoding; None where it cannot.
    """

    path: Place
    backend: str
    vendor: str
    levels: tuple[Level, ...]
    scale: Scale
    scale_source: str
    bounds: Box
    tile_px: tuple[int, int]
    compression: str = "unknown"
    background: tuple[int, int, int] = (255, 255, 255)
    warnings: tuple[str, ...] = ()
    read_px: int = 512
    jpeg: JpegTiles | None = None

    @property
    def name(self) -> str:
        """File name, without its folder."""
        return self.path.name

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.levels[0].size_px

    @property
    def box(self) -> Box:
        """All of level 0."""
        return self.levels[0].box

    @property
    def tile_count(self) -> int:
        """Native tiles of level 0."""
        (w, h), (tw, th) = self.size_px, self.tile_px
        return -(-w // tw) * -(-h // th)

    def tiles(self, box: Box) -> Iterator[Box]:
        """Yield the native tiles of level 0 that a box touches, cut at its edge."""
        (tw, th), whole = self.tile_px, self.box
        for y in range(box.y // th * th, box.bottom, th):
            for x in range(box.x // tw * tw, box.right, tw):
                yield whole.intersect(Box(x, y, tw, th))


class Slide(Protocol):
    """An open slide: picklable by path, reopened per process and after any read error.

    Use it as a context manager; :func:`wsi_pipeline.open_slide` makes one.
    """

    @property
    def info(self) -> SlideInfo:
        """Facts about the slide."""
        ...

    def read(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """Read pixels.

        Parameters
        ----------
        box : Box
            Level-0 pixels. Parts outside the slide come back as `info.background`.
        level : int
            Index into `info.levels`.

        Returns
        -------
        (h, w, 3) uint8 array
            RGB, of the size of ``info.levels[level].cover(box)``.

        Raises
        ------
        SlideError
            If the file cannot be decoded there. The handle is reopened, so that the
            next read is not affected.
        """
        ...

    def read_planes(self, box: Box, level: int = 0) -> NDArray[np.uint8]:
        """As `read`, one colour after the other: (3, h, w) uint8, contiguous."""
        ...

    def read_jpeg(self, box: Box) -> tuple[NDArray[np.uint8], list[bytes | None]]:
        """Pixels of level 0 with the compressed tiles that they came from.

        Parameters
        ----------
        box : Box
            Whole tiles of `info.jpeg.side_px`, cut at the slide's edge.

        Returns
        -------
        planes : (3, h, w) uint8 array
        tiles : list of bytes or None
            Row by row, as they lie in the file; None for a tile that was not scanned
            or is no JPEG of the tile's size.

        Raises
        ------
        SlideError
            As `read`; also where `info.jpeg` is None.
        """
        ...

    def stored_bytes(self, box: Box) -> int | None:
        """Bytes of the compressed tiles of level 0 under a box; None if unknown."""
        ...

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
