"""Writes the objects of a mask as one GeoJSON feature per class, for review."""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.exporters.collection import write_collection
from wsi_pipeline.exporters.measuring import name_evidence
from wsi_pipeline.exporters.objects import Objects
from wsi_pipeline.exporters.outlines import Outlines
from wsi_pipeline.exporters.scores import NO_SCORE
from wsi_pipeline.exporters.sheet import Sheet
from wsi_pipeline.exporters.spool import Spool

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "wsi_pipeline/class")


class Texts(Protocol):
    """The outlines of a batch as JSON."""

    def coordinates(self, index: int) -> Iterator[bytes]:
        """Those of an object, in pieces: of a Polygon, or of a MultiPolygon."""
        ...


@dataclass
class _Class:
    """What is known of the objects of a class so far."""

    spool: Spool
    objects: int = 0
    pixels: int = 0
    perimeter_um: float = 0.0
    sure_pixels: float = 0.0  # sum of the probability; NaN without such a label
    highest: float = 0.0
    score: float = NO_SCORE


def write_classes(
    path: Path,
    objects: Iterable[Objects],
    sheet: Sheet,
    texts_of: Callable[[Outlines], Texts],
    last: Iterable[Iterable[bytes]],
    facts: Mapping[str, Any],  # Any: JSON values
) -> None:
    """Write a FeatureCollection with a MultiPolygon per class, in the order of values.

    Its parts are the objects, sorted by their first pixels; they touch in points only.

    Parameters
    ----------
    path, objects, sheet
        As for `write_geojson`.
    texts_of : callable
        Makes JSON of outlines.
    last : iterable of iterables of bytes
        Features to write after them, each in pieces of JSON.
    facts : mapping of str to JSON values
        What the file says beside the sheet.

    Notes
    -----
    Memory: a batch of objects, and 32 bytes per object. The disk holds the outlines
    twice while they are sorted.
    """
    kinds = {kind.value: kind for kind in sheet.classes}
    found: dict[int, _Class] = {}
    with ExitStack() as stack:
        for batch in objects:
            texts = texts_of(batch.outlines)
            several = (np.diff(batch.outlines.objects) > 1).tolist()
            lengths = batch.outlines.lengths((sheet.scale.x, sheet.scale.y)).tolist()
            firsts, sure = batch.first.tolist(), batch.probability.tolist()
            highest, scores = batch.highest.tolist(), batch.score.tolist()
            for index, value in enumerate(batch.value.tolist()):
                if value not in found:
                    found[value] = _Class(stack.enter_context(Spool(path.parent)))
                mine, pixels = found[value], int(batch.pixels[index])
                pieces = texts.coordinates(index)
                if several[index]:
                    pieces = _unwrapped(pieces)
                mine.spool.add(0, firsts[index], pieces)
                mine.objects += 1
                mine.pixels += pixels
                mine.perimeter_um += lengths[index]
                mine.sure_pixels += sure[index] * pixels
                # what is not known is NaN, which is not larger than anything
                mine.highest = max(mine.highest, highest[index])
                mine.score = max(mine.score, scores[index])
        features = (_feature(kinds[v], found[v], sheet) for v in sorted(found))
        write_collection(path, chain(features, last), sheet, **facts)


def _feature(kind: MaskClass, found: _Class, sheet: Sheet) -> Iterator[bytes]:
    """A feature as pieces of JSON; its id follows the outlines, on which it depends."""
    shape = hashlib.sha256()
    yield b'{"type":"Feature","geometry":{"type":"MultiPolygon","coordinates":['
    for number, part in enumerate(found.spool.parts()):
        if number:
            yield b","
        for piece in part:
            shape.update(piece)
            yield piece
    facts = [sheet.slide_id, *(f"{key}={value}" for key, value in sheet.run)]
    told = "\n".join([*facts, sheet.objects, kind.name, shape.hexdigest()])
    properties: dict[str, Any] = {
        "objectType": sheet.objects,
        "classification": {"name": kind.name, "color": list(kind.rgb)},
        "measurements": _measurements(found, sheet),
    }
    if sheet.objects == "annotation":
        properties["isLocked"] = True
    if sheet.run:
        properties["metadata"] = dict(sheet.run)
    rest = {"id": str(uuid.uuid5(_NAMESPACE, told)), "properties": properties}
    yield b"]}," + orjson.dumps(rest)[1:]


def _measurements(found: _Class, sheet: Sheet) -> dict[str, float]:
    score = found.score if found.score > NO_SCORE else np.nan
    return {
        "Objects": found.objects,
        "Area um^2": round(found.pixels * sheet.pixel_um2, 3),
        "Perimeter um": round(found.perimeter_um, 3),
        **name_evidence(found.sure_pixels / found.pixels, found.highest, score),
    }


def _unwrapped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces of a list without its brackets."""
    last = next(pieces)[1:]
    for piece in pieces:
        yield last
        last = piece
    yield last[:-1]
