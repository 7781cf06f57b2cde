"""The OME-Zarr metadata of images and labels.

The only room that knows the words of the specifications, 0.5 (Zarr v3) and 0.4 (v2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import orjson

from wsi_pipeline.classes import NOT_COMPUTED, MaskClass
from wsi_pipeline.geometry import Box, Scale, halved
from wsi_pipeline.ome_xml import CHANNELS, OME_XML, image_xml
from wsi_pipeline.publishing import json_bytes

Version = Literal["0.5", "0.4"]
"""OME-Zarr version: "0.5" lies in Zarr v3, "0.4" in Zarr v2."""
SMALLEST_LEVEL_PX = 512


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
    size_px: tuple[int, int], base_downsample: int, count: int | None = None
) -> list[tuple[int, int]]:
    """(width, height) per level, halved until the longer side is at most 512 px.

    Parameters
    ----------
    size_px : tuple of int
        (width, height) of the slide's level 0.
    base_downsample : int
        A power of two.
    count : int, optional
        So many levels instead.
    """
    sizes = [halved(size_px, base_downsample.bit_length() - 1)]
    while len(sizes) < count if count else max(sizes[-1]) > SMALLEST_LEVEL_PX:
        sizes.append(halved(sizes[-1]))
    return sizes


class Folder(Protocol):
    """What `read_attributes` asks of a path, local (`pathlib`) or remote (`UPath`)."""

    def __truediv__(self, name: str, /) -> Self:
        """Path of a file in the folder."""
        ...

    def exists(self) -> bool:
        """Whether something is there."""
        ...

    def read_bytes(self) -> bytes:
        """Content of a file."""
        ...


def image_documents(
    version: Version,
    source: Source,
    base: int,
    sizes: Sequence[tuple[int, int]],
    unreadable: Sequence[Box] = (),
) -> dict[str, bytes]:
    """Metadata files of an RGB image group, those of its arrays left out.

    Parameters
    ----------
    version : "0.5" or "0.4"
        OME-Zarr version.
    source : Source
        The slide.
    base : int
        Level-0 pixels of the slide per pixel of the pyramid's base.
    sizes : sequence of tuple of int
        (width, height) per level, as `level_sizes` gives them.
    unreadable : sequence of Box
        Tiles of the slide that could not be decoded, level-0 pixels.

    Returns
    -------
    dict of str to bytes
        Name relative to the group's folder -> content, equal for equal arguments.

    Notes
    -----
    0.4 adds OME-XML, without which QuPath and Bio-Formats show neither um nor RGB. They
    look for it by name; "bioformats2raw.layout" and the list of series in ``OME`` are
    left out since they say that each child of the group is an image of its own.

    OMERO takes the factor between levels as 2 and rounds their sizes down where
    `level_sizes` rounds up: of a size that does not halve it leaves out the last row or
    column, and never reads past the end. Bio-Formats takes sizes from the arrays.

    References
    ----------
    OME-Zarr 0.5 and 0.4, sections "multiscales" and "omero"; 0.4, section
    "bioformats2raw.layout".
    """
    words = _image_words(version, source, base, len(sizes))
    lost = [[box.x, box.y, box.w, box.h] for box in unreadable]
    more = {"unreadable": lost} if lost else {}
    documents = _documents(version, words, _facts(source, base, sizes, more))
    if version == "0.4":
        documents["OME/.zgroup"] = documents[".zgroup"]
        documents[OME_XML] = image_xml(
            source.name, sizes[0], source.scale.coarser(base)
        )
    return documents


def label_documents(
    version: Version,
    source: Source,
    base: int,
    sizes: Sequence[tuple[int, int]],
    classes: Sequence[MaskClass],
    facts: dict[str, Any],
) -> dict[str, bytes]:
    """Metadata files of a label group; 255 is listed as "Not computed".

    Parameters
    ----------
    version, source, base, sizes
        See `image_documents`.
    classes : sequence of MaskClass
        All values that the label may hold besides 255.
    facts : dict
        JSON values to keep beside (model name and sha256).

    Returns
    -------
    dict of str to bytes
        See `image_documents`.

    References
    ----------
    OME-Zarr 0.5 and 0.4, section "labels" (image-label, colors, properties).
    """
    words = _label_words(version, source, base, len(sizes), classes)
    return _documents(version, words, _facts(source, base, sizes, facts))


def labels_documents(version: Version, names: Sequence[str]) -> dict[str, bytes]:
    """Metadata files of the group that lists an image's labels.

    Returns
    -------
    dict of str to bytes
        See `image_documents`.

    References
    ----------
    OME-Zarr 0.5 and 0.4, section "labels".
    """
    return _documents(version, {"labels": list(names)}, {})


def heat_map_documents(
    version: Version,
    source: Source,
    step_px: int,
    first_px: float,
    sizes: Sequence[tuple[int, int]],
    *,
    screened: bool = False,
) -> dict[str, bytes]:
    """Metadata files of a heat map over a slide: one float channel, 0 to 1.

    Parameters
    ----------
    version, source
        See `image_documents`.
    step_px : int
        Level-0 pixels of the slide from one pixel of the base to the next.
    first_px : float
        Centre of the base's first pixel, in level-0 pixels from the centre of the
        slide's first.
    sizes : sequence of tuple of int
        (width, height) per level.
    screened : bool
        Whether patches were left out.

    Returns
    -------
    dict of str to bytes
        See `image_documents`; no OME-XML, since who reads that shows GeoJSON instead.

    References
    ----------
    OME-Zarr 0.5 and 0.4, sections "multiscales" and "omero".
    """
    scales = _multiscales(version, source, step_px, len(sizes), True, first_px)
    channel = _channel("Attention", "FFFF00", 1)
    words = {
        "multiscales": [scales | {"name": f"{source.name}, attention"}],
        "omero": {"channels": [channel], "rdefs": {"model": "color"}},
    }
    own = {
        "source": source.to_json(),
        "step_px": step_px,
        "level_sizes_px": [list(size) for size in sizes],
        "value": "share of the patches that score no more; 0 = no patch"
        + "; -1 = not examined" * screened,
    }
    return _documents(version, words, {"wsi_pipeline": own})


def read_attributes(folder: Folder) -> tuple[Version, dict[str, Any]]:
    """Read what `image_documents` or `label_documents` stated, in one shape.

    Parameters
    ----------
    folder : Folder
        The group's.

    Returns
    -------
    version : "0.5" or "0.4"
    attributes : dict
        "wsi_pipeline", "multiscales" and, for labels, "image-label".

    Raises
    ------
    FileNotFoundError
        If there is neither ``zarr.json`` nor ``.zattrs``.
    orjson.JSONDecodeError
        If the file is not JSON.
    KeyError, TypeError
        If it does not hold what this package writes.
    """
    if (folder / "zarr.json").exists():
        version: Version = "0.5"
        stored = orjson.loads((folder / "zarr.json").read_bytes())["attributes"]
        words = stored["ome"]
    elif (folder / ".zattrs").exists():
        version = "0.4"
        stored = words = orjson.loads((folder / ".zattrs").read_bytes())
    else:
        raise FileNotFoundError(f"{folder}: neither zarr.json nor .zattrs there")
    attributes = {
        "wsi_pipeline": stored["wsi_pipeline"],
        "multiscales": words["multiscales"],
    }
    if "image-label" in words:
        attributes["image-label"] = words["image-label"]
    return version, attributes


def _documents(
    version: Version, words: dict[str, Any], facts: dict[str, Any]
) -> dict[str, bytes]:
    """Files of a group that say `words` of the specification and `facts` of our own."""
    attributes = _attributes(version, words, facts)
    if version == "0.4":
        return {
            ".zgroup": json_bytes({"zarr_format": 2}),
            ".zattrs": json_bytes(attributes),
        }
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return {"zarr.json": json_bytes(group)}


def _attributes(
    version: Version, words: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    if version == "0.4":
        return words | facts
    return {"ome": {"version": version} | words} | facts


def _image_words(
    version: Version, source: Source, base: int, count: int
) -> dict[str, Any]:
    channels = [_channel(name, colour, 255) for name, colour in CHANNELS]
    return {
        "multiscales": [_multiscales(version, source, base, count, True)],
        "omero": {"channels": channels, "rdefs": {"model": "color"}},
    }


def _channel(label: str, colour: str, most: int) -> dict[str, Any]:
    window = {"min": 0, "max": most, "start": 0, "end": most}
    return {"label": label, "color": colour, "active": True, "window": window}


def _label_words(
    version: Version,
    source: Source,
    base: int,
    count: int,
    classes: Sequence[MaskClass],
) -> dict[str, Any]:
    rows = [(c.value, c.name, [*c.rgb, 255 if c.value else 0]) for c in classes]
    rows.append((NOT_COMPUTED, "Not computed", [0, 0, 0, 0]))
    label = {
        "version": version,
        "colors": [{"label-value": v, "rgba": rgba} for v, _, rgba in rows],
        "properties": [{"label-value": v, "name": name} for v, name, _ in rows],
        "source": {"image": "../../"},
    }
    return {
        "multiscales": [_multiscales(version, source, base, count, False)],
        "image-label": label,
    }


def _multiscales(
    version: Version,
    source: Source,
    base: int,
    count: int,
    channels: bool,
    first_px: float | None = None,
) -> dict[str, Any]:
    """Axes and places; left out, the first pixel has the slide's corner as its own."""
    first = (base - 1) / 2 if first_px is None else first_px
    lead: list[Any] = [{"name": "c", "type": "channel"}] if channels else []
    space = [{"name": a, "type": "space", "unit": "micrometer"} for a in ("y", "x")]
    mpp = source.scale.y, source.scale.x
    datasets = []
    for index in range(count):
        factor = 2**index
        # pixel centres: the first pixel of a coarser level sits half a pixel further in
        centre = first + base * (factor - 1) / 2
        scale = [*([1.0] if channels else []), *(v * (base * factor) for v in mpp)]
        shift = [*([0.0] if channels else []), *(v * centre for v in mpp)]
        steps = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": shift},
        ]
        datasets.append({"path": str(index), "coordinateTransformations": steps})
    entry = {"name": source.name, "axes": lead + space, "datasets": datasets}
    # 0.5 says its version once, beside the list
    return entry | ({"version": version} if version == "0.4" else {})


def _facts(
    source: Source, base: int, sizes: Sequence[tuple[int, int]], more: dict[str, Any]
) -> dict[str, Any]:
    own = {
        "source": source.to_json(),
        "base_downsample": base,
        "level_sizes_px": [list(size) for size in sizes],
    }
    return {"wsi_pipeline": own | more}
