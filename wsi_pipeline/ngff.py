"""The OME-Zarr 0.5 metadata of images and labels, and how their arrays lie on disk.

The only room that knows the words of the specification.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import zarr
from zarr.codecs import ZstdCodec
from zarr.core.array_spec import ArrayConfigParams

from wsi_pipeline.classes import NOT_COMPUTED, MaskClass
from wsi_pipeline.geometry import Box, Scale, halved

OME_ZARR = "0.5"
LABEL_CHUNK_PX, LABEL_SHARD_PX = 1024, 4096
SMALLEST_LEVEL_PX = 512
# Every chunk is on disk, so a lost one raises instead of reading as the fill value.
STRICT: ArrayConfigParams = {
    "write_empty_chunks": True,
    "read_missing_chunks": False,
}
_RGB = (("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF"))


@dataclass(frozen=True)
class Source:
    """The slide that a pyramid was made from.

    Parameters
    ----------
    name : str
        File name of the slide, without its folder.
    size_px : tuple of int
        (width, height) of the slide's level 0.
    scale : Scale
        um/px of the slide's level 0.
    scale_source : str
        Where the scale came from.
    bounds : Box
        The scan's part of level 0, level-0 pixels: QuPath's frame.
    """

    name: str
    size_px: tuple[int, int]
    scale: Scale
    scale_source: str
    bounds: Box

    def to_json(self) -> dict[str, Any]:
        """As stored under ``wsi_pipeline`` in the group's attributes."""
        box = self.bounds
        return {
            "name": self.name,
            "size_px": list(self.size_px),
            "mpp": [self.scale.x, self.scale.y],
            "mpp_source": self.scale_source,
            "bounds": [box.x, box.y, box.w, box.h],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        w, h = data["size_px"]
        return cls(
            data["name"],
            (w, h),
            Scale(*data["mpp"]),
            data["mpp_source"],
            Box(*data["bounds"]),
        )


def level_sizes(
    size_px: tuple[int, int], base_downsample: int
) -> list[tuple[int, int]]:
    """(width, height) per level, halved until the longer side is at most 512 px.

    Parameters
    ----------
    size_px : tuple of int
        (width, height) of the slide's level 0.
    base_downsample : int
        A power of two.
    """
    sizes = [halved(size_px, base_downsample.bit_length() - 1)]
    while max(sizes[-1]) > SMALLEST_LEVEL_PX:
        sizes.append(halved(sizes[-1]))
    return sizes


def shard_side(level: int, chunk_px: int, block_px: int) -> int:
    """Side of a shard of a level, so that a base block covers whole shards.

    Notes
    -----
    A block of `block_px` on the base becomes ``block_px / 2**i`` on level i; from the
    level on where that is a single chunk, the cycle starts again.
    """
    depth = block_levels(chunk_px, block_px)
    return block_px >> (level % depth)


def block_levels(chunk_px: int, block_px: int) -> int:
    """Levels that one block fills: as long as its share is a whole chunk."""
    return (block_px // chunk_px).bit_length()


def image_attributes(
    source: Source, base: int, sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Attributes of an RGB image group.

    References
    ----------
    OME-Zarr 0.5, sections "multiscales" and "omero".
    """
    channels = [
        {
            "label": name,
            "color": colour,
            "active": True,
            "window": {"min": 0, "max": 255, "start": 0, "end": 255},
        }
        for name, colour in _RGB
    ]
    ome = {
        "version": OME_ZARR,
        "multiscales": [_multiscales(source, base, len(sizes), True)],
        "omero": {"channels": channels, "rdefs": {"model": "color"}},
    }
    return {"ome": ome} | _facts(source, base, sizes, {})


def label_attributes(
    source: Source,
    base: int,
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[MaskClass],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Attributes of a label group; 255 is listed as "Not computed".

    References
    ----------
    OME-Zarr 0.5, section "labels" (image-label, colors, properties).
    """
    rows = [(c.value, c.name, [*c.rgb, 255 if c.value else 0]) for c in classes]
    rows.append((NOT_COMPUTED, "Not computed", [0, 0, 0, 0]))
    label = {
        "version": OME_ZARR,
        "colors": [{"label-value": v, "rgba": rgba} for v, _, rgba in rows],
        "properties": [{"label-value": v, "name": name} for v, name, _ in rows],
        "source": {"image": "../../"},
    }
    ome = {
        "version": OME_ZARR,
        "multiscales": [_multiscales(source, base, len(sizes), False)],
        "image-label": label,
    }
    return {"ome": ome} | _facts(source, base, sizes, facts)


def labels_group(names: Sequence[str]) -> dict[str, Any]:
    """Content of the zarr.json that lists an image's labels.

    References
    ----------
    OME-Zarr 0.5, section "labels".
    """
    attributes = {"ome": {"version": OME_ZARR, "labels": list(names)}}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def create_level(
    group: zarr.Group,
    index: int,
    size_px: tuple[int, int],
    *,
    channels: int | None,
    chunk_px: int,
    shard_px: int,
    fill: int,
    zstd_level: int,
) -> None:
    """Add the empty array of one level: sharded, zstd with checksum.

    Parameters
    ----------
    group : zarr.Group
        The multiscale group.
    index : int
        Level, which names the array.
    size_px : tuple of int
        (width, height).
    channels : int or None
        None makes a (y, x) array.
    chunk_px, shard_px : int
        Sides; a shard is a whole number of chunks.
    fill : int
        What a place reads as that was never written.
    zstd_level : int
        Compression level.
    """
    lead = () if channels is None else (channels,)
    w, h = size_px
    group.create_array(
        str(index),
        shape=(*lead, h, w),
        dtype="uint8",
        chunks=(*lead, chunk_px, chunk_px),
        shards=(*lead, shard_px, shard_px),
        compressors=ZstdCodec(level=zstd_level, checksum=True),
        fill_value=fill,
        dimension_names=["c", "y", "x"][1 - len(lead) :],
        config=STRICT,
    )


def _multiscales(
    source: Source, base: int, count: int, channels: bool
) -> dict[str, Any]:
    lead: list[Any] = [{"name": "c", "type": "channel"}] if channels else []
    space = [{"name": a, "type": "space", "unit": "micrometer"} for a in ("y", "x")]
    datasets = []
    for index in range(count):
        factor = base * 2**index
        scale = [*([1.0] if channels else []), source.scale.y * factor]
        scale.append(source.scale.x * factor)
        # pixel centres: the first pixel of a coarser level sits half a pixel further in
        shift = [*([0.0] if channels else []), source.scale.y * (factor - 1) / 2]
        shift.append(source.scale.x * (factor - 1) / 2)
        steps = [{"type": "scale", "scale": scale}]
        steps.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(index), "coordinateTransformations": steps})
    return {"name": source.name, "axes": lead + space, "datasets": datasets}


def _facts(
    source: Source, base: int, sizes: Sequence[tuple[int, int]], more: dict[str, Any]
) -> dict[str, Any]:
    own = {
        "source": source.to_json(),
        "base_downsample": base,
        "level_sizes_px": [list(size) for size in sizes],
    }
    return {"wsi_pipeline": own | more}
