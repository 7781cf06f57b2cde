"""The codecs of image chunks: a table of how pixels become the bytes that Zarr reads.

Chunks are encoded here directly: zarr-python's own way costs as much as the codec.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import cv2
import google_crc32c
import imagecodecs
import numpy as np
from imagecodecs.zarr import Jpeg as ZarrJpeg
from imagecodecs.zarr import register_codecs
from numcodecs import Blosc
from numcodecs.zstd import Zstd as ZstdEncoder
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, TransposeCodec, ZstdCodec

# reading JPEG chunks back goes through zarr, which learns the codec's name here
register_codecs({"jpeg"}, verbose=False)


class ChunkCodec(Protocol):
    """One way to compress a chunk."""

    @property
    def padding(self) -> str:
        """How NumPy pads a chunk at the image's edge: "constant" (0) or "edge"."""
        ...

    def encode(self, planes: NDArray[np.uint8]) -> bytes:
        """Bytes of a whole chunk, (c, y, x) uint8, contiguous."""
        ...

    def seal(self, data: bytes) -> bytes:
        """An encoded chunk as it is stored, where a flipped bit is found by reading."""
        ...

    def zarr_arguments(self) -> dict[str, Any]:
        """What `zarr.Group.create_array` must be told to read it."""
        ...


@dataclass(frozen=True)
class Zstd:
    """Lossless, with a checksum in every chunk.

    Parameters
    ----------
    level : int
        Compression level.

    References
    ----------
    RFC 8878; Zarr v3 codec "zstd".
    """

    level: int = 1
    padding: ClassVar[str] = "constant"

    def encode(self, planes: NDArray[np.uint8]) -> bytes:
        """See `ChunkCodec.encode`; releases the GIL."""
        data: bytes = ZstdEncoder(level=self.level, checksum=True).encode(planes)
        return data

    def seal(self, data: bytes) -> bytes:
        """See `ChunkCodec.seal`: the checksum is zstd's own."""
        return data

    def zarr_arguments(self) -> dict[str, Any]:
        """See `ChunkCodec.zarr_arguments`."""
        return {"compressors": ZstdCodec(level=self.level, checksum=True)}


@dataclass(frozen=True)
class BloscLz4:
    """Lossless, in what the Zarr v2 readers of Java know.

    Notes
    -----
    Encode in threads other than the main one: there Blosc runs on a single thread and
    its bytes do not depend on timing.
    """

    padding: ClassVar[str] = "constant"

    def encode(self, planes: NDArray[np.uint8]) -> bytes:
        """See `ChunkCodec.encode`; releases the GIL."""
        data: bytes = self._encoder().encode(planes)
        return data

    def seal(self, data: bytes) -> bytes:
        """See `ChunkCodec.seal`: Zarr v2 has no checksum that they know."""
        return data

    def zarr_arguments(self) -> dict[str, Any]:
        """See `ChunkCodec.zarr_arguments`."""
        return {"compressors": self._encoder()}

    def _encoder(self) -> Blosc:
        return Blosc(cname="lz4", clevel=5, shuffle=Blosc.NOSHUFFLE)


@dataclass(frozen=True)
class Jpeg:
    """Lossy, YCbCr 4:2:0 or RGB, or the slide's own tiles copied as they are.

    Parameters
    ----------
    quality : int
        1 to 100, as libjpeg counts.
    colour : "YCBCR" or "RGB"
        Colour space inside the JPEG, whatever its markers say.
    tables : bytes or None
        JPEG tables that copied tiles leave out.

    References
    ----------
    ITU-T T.81; codec "imagecodecs_jpeg" of the imagecodecs package; Zarr v3 codec
    "crc32c".
    """

    quality: int
    colour: str = "YCBCR"
    tables: bytes | None = None
    padding: ClassVar[str] = "edge"

    def encode(self, planes: NDArray[np.uint8]) -> bytes:
        """See `ChunkCodec.encode`; releases the GIL."""
        pixels = cv2.merge(list(planes))
        data = imagecodecs.jpeg8_encode(
            pixels,
            level=self.quality,
            colorspace="RGB",
            outcolorspace=self.colour,
            subsampling="444" if self.colour == "RGB" else "420",
        )
        return bytes(data)

    def seal(self, data: bytes) -> bytes:
        """See `ChunkCodec.seal`: a JPEG with a flipped bit decodes to other pixels."""
        crc: int = google_crc32c.value(data)
        return data + crc.to_bytes(4, "little")

    def zarr_arguments(self) -> dict[str, Any]:
        """See `ChunkCodec.zarr_arguments`."""
        return {
            "filters": [TransposeCodec(order=(1, 2, 0))],
            "serializer": ZarrJpeg(
                level=self.quality,
                colorspace_data="RGB",
                colorspace_jpeg=self.colour,
                tables=self.tables,
            ),
            "compressors": Crc32cCodec(),
        }
