"""Writes features, one by one, to a GeoJSON file that QuPath imports."""

import gzip
import io
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from wsi_pipeline.exporters.sheet import Sheet


def write_collection(
    path: Path, features: Iterable[bytes | Iterable[bytes]], sheet: Sheet, **facts: Any
) -> None:
    """Write a FeatureCollection as a stream; the same bytes for the same features.

    Parameters
    ----------
    path : Path
        File to write; ".gz" and ".zip" at the end of its name say how to pack it.
    features : iterable of bytes or of iterables of bytes
        Features as JSON, each whole or in pieces.
    sheet : Sheet
        What the file says of itself.
    **facts
        JSON values to say beside.

    References
    ----------
    RFC 7946, with a foreign member "wsi_pipeline" for what the file says of itself.
    """
    with _stream(path, f"{sheet.slide_id}.geojson") as stream:
        stream.write(b'{"type":"FeatureCollection","wsi_pipeline":')
        stream.write(orjson.dumps(sheet.header() | facts))
        stream.write(b',"features":[')
        for index, feature in enumerate(features):
            stream.write(b",\n" if index else b"\n")
            stream.writelines([feature] if isinstance(feature, bytes) else feature)
        stream.write(b"\n]}\n")


@contextmanager
def _stream(path: Path, name: str) -> Iterator[BinaryIO]:
    """A file packed as its ending says; no time in it: the same bytes every time."""
    with path.open("wb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                yield from _buffered(packed)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(raw, "w") as archive:
                entry = zipfile.ZipInfo(name)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3  # whatever this one is
                # the size is not known: it may be beyond what a plain zip can state
                with archive.open(entry, "w", force_zip64=True) as packed:
                    yield from _buffered(packed)
        else:
            yield raw


def _buffered(packed: Any) -> Iterator[BinaryIO]:  # Any: the libraries' streams
    with io.BufferedWriter(packed, 1 << 16) as buffered:
        yield cast("BinaryIO", buffered)
