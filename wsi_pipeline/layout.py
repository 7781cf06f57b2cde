"""How the arrays of pyramids lie on disk: chunks, shards, and their codecs."""

from dataclasses import dataclass, field
from typing import Any

import zarr
from zarr.core.array_spec import ArrayConfigParams

from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.codecs import BloscLz4, ChunkCodec, Zstd
from wsi_pipeline.ngff import Version

# Every file is there, so a lost one raises instead of reading as the fill value.
STRICT: ArrayConfigParams = {
    "write_empty_chunks": True,
    "read_missing_chunks": False,
}
LABEL_CHUNK_PX, LABEL_SHARD_PX = 1024, 4096
HEAT_CHUNK_PX = 512
_LABEL_ZSTD_LEVEL = 3


@dataclass(frozen=True)
class Layout:
    """Chunks, shards and codecs of a pyramid.

    Parameters
    ----------
    version : "0.5" or "0.4"
        OME-Zarr version: Zarr v3 with shards, or Zarr v2 with a file per chunk.
    chunk_px : int
        Side of a chunk.
    block_px : int
        Side of what one task writes on the finest level of its round: a power of two
        times `chunk_px`.
    codec : ChunkCodec
        Of all levels, unless `base_codec` is given.
    base_codec : ChunkCodec, optional
        Of level 0, for tiles copied from the slide.
    colours : bool
        Whether arrays are (3, y, x); those of a label are (y, x).
    """

    version: Version = "0.5"
    chunk_px: int = 512
    block_px: int = 4096
    codec: ChunkCodec = field(default_factory=Zstd)
    base_codec: ChunkCodec | None = None
    colours: bool = True

    @classmethod
    def of_label(cls, version: Version, block_px: int = LABEL_SHARD_PX) -> "Layout":
        """That of labels."""
        codec = Zstd(_LABEL_ZSTD_LEVEL) if version == "0.5" else BloscLz4()
        return cls(version, LABEL_CHUNK_PX, block_px, codec, colours=False)

    @property
    def depth(self) -> int:
        """Levels that one block fills: as long as its share is a whole chunk."""
        return (self.block_px // self.chunk_px).bit_length()

    def shard_px(self, level: int) -> int:
        """Side of a shard, so that a block covers whole shards of its levels.

        Notes
        -----
        A block of `block_px` on the first level of a round becomes ``block_px / 2**i``
        on the i-th; from the level on where that is one chunk, a new round starts.
        """
        return self.block_px >> (level % self.depth)

    def codec_of(self, level: int) -> ChunkCodec:
        """Codec of a level."""
        return self.base_codec if level == 0 and self.base_codec else self.codec

    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a chunk as stored; in Zarr v2 it has one colour."""
        plane = (self.chunk_px, self.chunk_px)
        return (3 if self.version == "0.5" else 1, *plane) if self.colours else plane

    def create_level(
        self, group: zarr.Group, index: int, size_px: tuple[int, int]
    ) -> None:
        """Add the empty uint8 array of one level, of a label filled with 255.

        Parameters
        ----------
        group : zarr.Group
            The multiscale group.
        index : int
            Level, which names the array.
        size_px : tuple of int
            (width, height).
        """
        w, h = size_px
        side = self.shard_px(index)
        lead = (3,) if self.colours else ()
        group.create_array(
            str(index),
            shape=(*lead, h, w),
            dtype="uint8",
            chunks=self.chunk_shape(),
            fill_value=0 if self.colours else NOT_COMPUTED,
            config=STRICT,
            **_place(self.version, (*lead, side, side)),
            **self.codec_of(index).zarr_arguments(),
        )


def create_heat_level(
    group: zarr.Group, version: Version, index: int, size_px: tuple[int, int]
) -> zarr.Array[Any]:
    """Add the empty (1, y, x) float32 array of one level of a heat map; 0 = nothing.

    Parameters
    ----------
    group, index, size_px
        See `Layout.create_level`.
    version : "0.5" or "0.4"
        OME-Zarr version.
    """
    w, h = size_px
    codec = Zstd(_LABEL_ZSTD_LEVEL) if version == "0.5" else BloscLz4()
    return group.create_array(
        str(index),
        shape=(1, h, w),
        dtype="float32",
        chunks=(1, HEAT_CHUNK_PX, HEAT_CHUNK_PX),
        fill_value=0,
        config=STRICT,
        **_place(version, (1, HEAT_CHUNK_PX, HEAT_CHUNK_PX)),
        **codec.zarr_arguments(),
    )


def _place(version: Version, shard: tuple[int, ...]) -> dict[str, Any]:
    """Shards and axis names in Zarr v3; nested chunk keys in v2, which has neither."""
    if version == "0.4":
        return {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    return {"shards": shard, "dimension_names": ["c", "y", "x"][-len(shard) :]}
