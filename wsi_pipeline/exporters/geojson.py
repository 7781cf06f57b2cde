"""Writes mask objects as GeoJSON that QuPath imports, one feature per object.

The rules are those that QuPath 0.4 to 0.7 apply on import.
"""

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from wsi_pipeline.exporters.accounts import ClassArea
from wsi_pipeline.exporters.collection import write_collection
from wsi_pipeline.exporters.exporter import Export, Exporter, of_objects
from wsi_pipeline.exporters.grouping import write_classes
from wsi_pipeline.exporters.measuring import MEASUREMENTS, name_evidence
from wsi_pipeline.exporters.objects import Objects
from wsi_pipeline.exporters.outlines import Outlines, per_part
from wsi_pipeline.exporters.placing import GRID_PX
from wsi_pipeline.exporters.sheet import Sheet
from wsi_pipeline.exporters.spool import Spool
from wsi_pipeline.exporters.unexamined import Unexamined, find_unexamined

type Json = dict[str, Any]  # Any: JSON values

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsi_pipeline/object")
_DECIMALS = round(-np.log10(GRID_PX))
_RINGS = 4096  # turned into text together


def write_geojson(
    path: Path,
    objects: Iterable[Objects],
    sheet: Sheet,
    rest: Unexamined | None = None,
) -> None:
    """Write a FeatureCollection as a stream, sorted by class and first pixel.

    Parameters
    ----------
    path : Path
        File to write.
    objects : iterable of Objects
        Outlines in the sheet's frame, valid on the 0.01-px grid; in any order.
    sheet : Sheet
    rest : Unexamined, optional
        What has no result: annotations of their own, after the others.

    Notes
    -----
    Memory: a batch of objects, 32 bytes per object, and the features of `rest`. The
    disk holds the others twice while they are sorted, once uncompressed.

    References
    ----------
    RFC 7946; QuPath 0.7 ``qupath.lib.io`` (GsonTools, QuPathTypeAdapters).
    """
    last, facts = _unexamined(rest, sheet), {"measurements": MEASUREMENTS}
    if rest is not None:
        facts["not_examined"] = rest.facts()
    if sheet.group == "class":
        write_classes(path, objects, sheet, _Rings, last, facts)
        return
    about = _about(sheet)
    with Spool(path.parent) as spool:
        for batch in objects:
            values, firsts = batch.value.tolist(), batch.first.tolist()
            features = _features(batch, sheet, about)
            for value, first, feature in zip(values, firsts, features, strict=True):
                spool.add(value, first, feature)
        write_collection(path, chain(spool.parts(), last), sheet, **facts)


def _about(sheet: Sheet) -> dict[int, Json]:
    """Properties of a class's features, without measurements."""
    common = {"isLocked": True} if sheet.objects == "annotation" else {}
    run = {"metadata": dict(sheet.run)} if sheet.run else {}
    return {
        kind.value: {
            "objectType": sheet.objects,
            "classification": {"name": kind.name, "color": list(kind.rgb)},
            **common,
            **run,
        }
        for kind in sheet.classes
    }


def _unexamined(rest: Unexamined | None, sheet: Sheet) -> list[list[bytes]]:
    """Features of what has no result, sorted like the others."""
    if rest is None:
        return []
    told = replace(sheet, classes=rest.kinds)
    about = rest.properties(sheet)
    found = [
        (value, first, feature)
        for batch in rest.objects
        for value, first, feature in zip(
            batch.value.tolist(),
            batch.first.tolist(),
            _features(batch, told, about),
            strict=True,
        )
    ]
    return [feature for *_, feature in sorted(found, key=itemgetter(0, 1))]


def _features(
    batch: Objects, sheet: Sheet, about: dict[int, Json]
) -> Iterator[list[bytes]]:
    """Each feature as pieces of JSON."""
    rings = _Rings(batch.outlines)
    several = (np.diff(batch.outlines.objects) > 1).tolist()
    values = batch.value.tolist()
    names, numbers = identify(batch, sheet), _measurements(batch, sheet)
    for index, (name, measured) in enumerate(zip(names, numbers, strict=True)):
        form = "MultiPolygon" if several[index] else "Polygon"
        opening = f'{{"type":"Feature","id":"{name}","geometry":{{"type":"{form}",'
        properties = about[values[index]] | {"measurements": measured}
        yield [
            opening.encode() + b'"coordinates":',
            *rings.coordinates(index),
            b'},"properties":' + orjson.dumps(properties) + b"}",
        ]


def _measurements(batch: Objects, sheet: Sheet) -> Iterator[dict[str, float]]:
    """Numbers of the objects; an area is that of the pixels in the mask."""
    areas = np.round(batch.pixels * sheet.pixel_um2, 3)
    lengths = np.round(batch.outlines.lengths((sheet.scale.x, sheet.scale.y)), 3)
    columns = (areas, lengths, batch.probability, batch.highest, batch.score)
    for area, length, *evidence in zip(*(c.tolist() for c in columns), strict=True):
        yield {"Area um^2": area, "Perimeter um": length} | name_evidence(*evidence)


def identify(batch: Objects, sheet: Sheet) -> Iterator[str]:
    """UUIDv5 of slide, run facts, class and shape: a re-import shows as a duplicate.

    The same as those of Python's ``uuid``, many at a time.
    """
    run = [f"{key}={value}" for key, value in sheet.run]
    facts = [sheet.slide_id, *run, sheet.objects]
    told = {
        kind.value: _NAMESPACE.bytes + "\n".join([*facts, kind.name, ""]).encode()
        for kind in sheet.classes
    }
    outlines = batch.outlines
    points, rings = outlines.point_starts.tolist(), outlines.ring_starts.tolist()
    digests = bytearray()
    for index, value in enumerate(batch.value.tolist()):
        start, stop = points[index : index + 2]
        holes = outlines.rings[rings[index] : rings[index + 1]] - start
        shape = outlines.points[start:stop].tobytes() + holes.tobytes()
        named = hashlib.sha1(told[value] + shape, usedforsecurity=False)
        digests += named.digest()[:16]
    marked = np.frombuffer(digests, np.uint8).reshape(-1, 16)
    marked[:, 6] = marked[:, 6] & 0x0F | 0x50  # version 5
    marked[:, 8] = marked[:, 8] & 0x3F | 0x80  # the variant of RFC 9562
    for row in range(len(marked)):
        text = digests[16 * row : 16 * row + 16].hex()
        yield "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class _Rings:
    """Outlines as GeoJSON's nested lists, whole numbers without a decimal point."""

    def __init__(self, outlines: Outlines) -> None:
        self._objects = outlines.objects.tolist()
        points, starts = outlines.closed()
        points = np.round(points, _DECIMALS) + 0
        whole = points.astype(np.int64)
        is_whole = per_part(np.logical_and, (whole == points).all(axis=1), starts)
        rings: list[NDArray[Any]] = [  # Any: of either kind of number
            (whole if mine else points)[start:stop]
            for mine, (start, stop) in zip(
                is_whole.tolist(), pairwise(starts.tolist()), strict=True
            )
        ]
        self._polygons = [rings[a:b] for a, b in pairwise(outlines.polygons.tolist())]

    def coordinates(self, index: int) -> Iterator[bytes]:
        """Those of an object: of its polygon, or of each of them."""
        first, last = self._objects[index], self._objects[index + 1]
        if last - first == 1:
            yield from self._polygon(first)
            return
        for polygon in range(first, last):
            yield b"[" if polygon == first else b","
            yield from self._polygon(polygon)
        yield b"]"

    def _polygon(self, index: int) -> Iterator[bytes]:
        rings = self._polygons[index]
        if len(rings) <= _RINGS:
            yield _dump(rings)
            return
        for start in range(0, len(rings), _RINGS):
            yield b"," if start else b"["
            yield _dump(rings[start : start + _RINGS])[1:-1]
        yield b"]"


def _dump(rings: list[NDArray[Any]]) -> bytes:  # Any: as above
    return orjson.dumps(rings, option=orjson.OPT_SERIALIZE_NUMPY)


def _write(path: Path, export: Export) -> tuple[ClassArea, ...]:
    """What an `Exporter` needs: objects, and what has no result where it is known."""
    rest, frame, options = None, export.sheet.frame, export.options
    if export.coverage is not None and options.unexamined:
        rest = find_unexamined(
            export.coverage, frame, options.simplify_um, export.workers
        )
    return of_objects(partial(write_geojson, rest=rest))(path, export)


GEOJSON = Exporter(
    "segmentation.geojson",
    "GeoJSON for QuPath",
    _write,
    is_packed=True,
)
