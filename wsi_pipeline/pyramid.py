"""OME-Zarr pyramids of images and masks: create, open, read, write.

The only room that knows the OME-Zarr 0.5 metadata and how arrays lie on disk.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dask.array as da
import numpy as np
import orjson
import zarr
from numpy.typing import NDArray
from PIL import Image
from zarr.codecs import ZstdCodec

from wsi_pipeline.classes import NOT_COMPUTED, MaskClass
from wsi_pipeline.errors import PyramidError
from wsi_pipeline.geometry import Box, Level, Scale, halved
from wsi_pipeline.publishing import publish_bytes

OME_ZARR = "0.5"
LABEL_CHUNK_PX, LABEL_SHARD_PX = 1024, 4096
SMALLEST_LEVEL_PX = 512
# Every chunk is on disk, so a lost one raises instead of reading as the fill value.
STRICT = {"write_empty_chunks": True, "read_missing_chunks": False}
# What zarr and its codecs raise on a lost, cut or flipped chunk.
_DAMAGE = (RuntimeError, ValueError, OSError, KeyError)
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


class Multiscale:
    """What image and mask pyramids share: levels, frame, and the group on disk.

    Parameters
    ----------
    path : Path
        Folder of the OME-Zarr group. Handles are picklable: only the path is kept.

    Raises
    ------
    PyramidError
        If the folder holds no pyramid written by this package.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        attributes = _attributes(path)
        try:
            facts = attributes["wsi_pipeline"]
            self.source = Source.from_json(facts["source"])
            base = int(facts["base_downsample"])
            self.levels = tuple(
                Level((w, h), float(base * 2**i))
                for i, (w, h) in enumerate(facts["level_sizes_px"])
            )
            self._ome = attributes["ome"]
        except (KeyError, TypeError, ValueError) as error:
            raise PyramidError(
                f"{path}: not a pyramid of this package ({error!r}); "
                "`wsi tile` writes one"
            ) from error

    @property
    def scale(self) -> Scale:
        """um/px of the base (level 0 of the pyramid, not of the slide)."""
        return self.source.scale.coarser(self.levels[0].downsample)

    def level(self, index: int) -> da.Array:
        """A level as a lazy uint8 array, (3, y, x) or (y, x)."""
        return da.from_array(self.array(index), chunks=self.array(index).chunks)

    def array(self, index: int) -> Any:  # Any: zarr's indexing is untyped
        """A level as an open zarr array for reading."""
        return _open_array(self.path / str(index), "r")

    def read_level(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read a box given on the level's own grid, clipped to it.

        Returns
        -------
        (..., h, w) uint8 array
            With the size of the clipped box.
        """
        inside = self.levels[level].box.intersect(box)
        return _read(self.array(level), inside, self.path / str(level))

    def put(self, level: int, box: Box, data: NDArray[np.uint8]) -> None:
        """Write a box given on the level's own grid; whole shards only.

        Raises
        ------
        PyramidError
            If the box does not start and end at shard borders or the level's edge:
            two tasks that share a shard would lose each other's work.
        """
        array = _open_array(self.path / str(level), "r+")
        shard = array.shards[-1] if array.shards else array.chunks[-1]
        w, h = self.levels[level].size_px
        aligned = (
            box.x % shard == 0
            and box.y % shard == 0
            and (box.right % shard == 0 or box.right == w)
            and (box.bottom % shard == 0 or box.bottom == h)
        )
        if not aligned:
            raise PyramidError(
                f"{self.path}/{level}: {box} does not end at {shard} px shard borders"
            )
        array[..., box.rows, box.columns] = data

    def shard_px(self, level: int) -> int:
        """Side of a shard of a level: the unit that one task writes."""
        array = self.array(level)
        return int(array.shards[-1] if array.shards else array.chunks[-1])

    def level_for(self, mpp: float) -> int:
        """Coarsest level that is not coarser than `mpp` (within 1 %), else 0."""
        mean = self.source.scale.mean
        fits = [i for i, v in enumerate(self.levels) if v.downsample * mean <= mpp * 1.01]
        return fits[-1] if fits else 0


class Pyramid(Multiscale):
    """An RGB image pyramid, (c, y, x) uint8, each level half the one below."""

    @classmethod
    def create(
        cls,
        path: Path,
        source: Source,
        base_downsample: int,
        *,
        chunk_px: int,
        block_px: int,
        zstd_level: int,
    ) -> Self:
        """Write metadata and empty arrays, zstd with checksum, sharded.

        Parameters
        ----------
        path : Path
            Folder that does not exist yet.
        base_downsample : int
            Level-0 pixels per pixel of the pyramid's base, a power of two.
        chunk_px, block_px : int
            Side of a chunk, and of what one task writes on the base.

        References
        ----------
        OME-Zarr 0.5, sections "multiscales" and "omero".
        """
        sizes = level_sizes(source.size_px, base_downsample)
        channels = [
            {
                "label": name,
                "color": colour,
                "active": True,
                "window": {"min": 0, "max": 255, "start": 0, "end": 255},
            }
            for name, colour in _RGB
        ]
        attributes = _facts(source, base_downsample, sizes, {})
        attributes["ome"] = {
            "version": OME_ZARR,
            "multiscales": [_multiscales(source, base_downsample, len(sizes), True)],
            "omero": {"channels": channels, "rdefs": {"model": "color"}},
        }
        group = zarr.create_group(path, zarr_format=3, attributes=attributes)
        for index, size in enumerate(sizes):
            _create_array(
                group,
                index,
                size,
                channels=3,
                chunk_px=chunk_px,
                shard_px=shard_side(index, chunk_px, block_px),
                fill=0,
                zstd_level=zstd_level,
            )
        return cls(path)

    def read(
        self, box: Box, mpp: float, size_px: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """Read a level-0 box at a given scale, area-averaged from the level above it.

        Parameters
        ----------
        box : Box
            Level-0 pixels; parts outside the slide come back white.
        mpp : float
            um/px wanted; decides the level.
        size_px : tuple of int, optional
            (width, height) to return; left out, the box's size at `mpp`.

        Returns
        -------
        (3, h, w) uint8 array
        """
        index = self.level_for(mpp)
        factor = self.levels[index].downsample
        if size_px is None:
            ratio = self.source.scale.mean / mpp
            size_px = max(1, round(box.w * ratio)), max(1, round(box.h * ratio))
        outer = box.scaled_down(factor)
        pixels = self.read_padded(outer, index)
        inner = (
            box.x / factor - outer.x,
            box.y / factor - outer.y,
            box.right / factor - outer.x,
            box.bottom / factor - outer.y,
        )
        if size_px == (outer.w, outer.h) and inner == (0, 0, *size_px):
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        resized = image.resize(size_px, Image.Resampling.BILINEAR, box=inner)
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    def read_padded(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read a box on the level's own grid; outside the level it is white.

        Returns
        -------
        (3, h, w) uint8 array
        """
        inside = self.levels[level].box.intersect(box)
        if inside == box:
            return self.read_level(box, level)
        out = np.full((3, box.h, box.w), 255, np.uint8)
        if inside.area_px:
            place = inside.shift(-box.x, -box.y)
            out[:, place.rows, place.columns] = self.read_level(inside, level)
        return out

    @property
    def labels_path(self) -> Path:
        """Folder of the label images that belong to this pyramid."""
        return self.path / "labels"

    def publish_labels_list(self) -> None:
        """Rewrite the list of labels from the folders there are."""
        folder = self.labels_path
        folder.mkdir(exist_ok=True)
        names = sorted(p.name for p in folder.iterdir() if (p / "zarr.json").exists())
        attributes = {"ome": {"version": OME_ZARR, "labels": names}}
        metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        publish_bytes(
            folder / "zarr.json", orjson.dumps(metadata, option=orjson.OPT_INDENT_2)
        )

    def masks(self, name: str) -> "MaskPyramid":
        """A label image of this pyramid by name."""
        return MaskPyramid(self.labels_path / name)


class MaskPyramid(Multiscale):
    """A label pyramid, (y, x) uint8, on the grid of an image pyramid's levels."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        label = self._ome.get("image-label")
        if label is None:
            raise PyramidError(f"{path}: an image, not a mask")
        colours = {c["label-value"]: tuple(c["rgba"][:3]) for c in label["colors"]}
        self.classes = tuple(
            MaskClass(p["label-value"], p["name"], colours[p["label-value"]])
            for p in label["properties"]
            if p["label-value"] != NOT_COMPUTED
        )

    @classmethod
    def create(
        cls,
        path: Path,
        source: Source,
        base_downsample: int,
        classes: Iterable[MaskClass],
        facts: dict[str, Any] | None = None,
    ) -> Self:
        """Write metadata and empty arrays whose fill value is 255, not computed.

        Parameters
        ----------
        path : Path
            Folder that does not exist yet.
        classes : iterable of MaskClass
            All values that the mask may hold besides 255.
        facts : dict, optional
            JSON values to keep beside (model name and sha256).

        References
        ----------
        OME-Zarr 0.5, section "labels" (image-label, colors, properties).
        """
        rows = tuple(classes)
        sizes = level_sizes(source.size_px, base_downsample)
        attributes = _facts(source, base_downsample, sizes, facts or {})
        attributes["ome"] = {
            "version": OME_ZARR,
            "multiscales": [_multiscales(source, base_downsample, len(sizes), False)],
            "image-label": {
                "version": OME_ZARR,
                "colors": [
                    {"label-value": c.value, "rgba": [*c.rgb, 255 if c.value else 0]}
                    for c in rows
                ]
                + [{"label-value": NOT_COMPUTED, "rgba": [0, 0, 0, 0]}],
                "properties": [{"label-value": c.value, "name": c.name} for c in rows]
                + [{"label-value": NOT_COMPUTED, "name": "Not computed"}],
                "source": {"image": "../../"},
            },
        }
        group = zarr.create_group(path, zarr_format=3, attributes=attributes)
        for index, size in enumerate(sizes):
            _create_array(
                group,
                index,
                size,
                channels=None,
                chunk_px=LABEL_CHUNK_PX,
                shard_px=LABEL_SHARD_PX,
                fill=NOT_COMPUTED,
                zstd_level=3,
            )
        return cls(path)

    def write_coarser(self) -> None:
        """Fill levels 1.. from level 0, each pixel the top-left of its 2 x 2.

        Notes
        -----
        Memory: four label shards (64 MB), kept by going shard by shard.
        """
        for index in range(1, len(self.levels)):
            whole = self.levels[index].box
            for block in whole.blocks(self.shard_px(index)):
                finer = Box(block.x * 2, block.y * 2, block.w * 2, block.h * 2)
                data = self.read_level(finer, index - 1)[::2, ::2]
                self.put(index, block, np.ascontiguousarray(data))

    def count_pixels(self) -> dict[int, int]:
        """Pixels per value on the base, 255 included, values that occur only."""
        totals = np.zeros(256, np.int64)
        for block in self.levels[0].box.blocks(LABEL_SHARD_PX):
            totals += np.bincount(self.read_level(block, 0).ravel(), minlength=256)
        return {int(v): int(totals[v]) for v in np.flatnonzero(totals)}


def open_pyramid(path: Path | str) -> Pyramid:
    """Open the image pyramid that `tile_slide` wrote.

    Raises
    ------
    PyramidError
        If the folder holds none.
    """
    return Pyramid(Path(path))


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


def _create_array(
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


def _attributes(path: Path) -> dict[str, Any]:
    try:
        metadata = orjson.loads((path / "zarr.json").read_bytes())
        return dict(metadata["attributes"])
    except (OSError, KeyError, orjson.JSONDecodeError) as error:
        raise PyramidError(f"{path}: no OME-Zarr there ({error})") from error


def _open_array(path: Path, mode: Any) -> Any:  # Any: zarr's literal type and indexing
    try:
        return zarr.open_array(path, mode=mode, config=STRICT)
    except (OSError, ValueError) as error:
        raise PyramidError(f"{path}: no array there ({error})") from error


def _read(array: Any, box: Box, path: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(array[..., box.rows, box.columns])
    except _DAMAGE as error:
        raise PyramidError(f"{path}: damaged, {box} cannot be read: {error}") from error
