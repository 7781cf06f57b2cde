"""Writes features, one by one, to a GeoJSON file that QuPath imports."""

import gzip
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from wsi_pipeline.exporters.sheet import Sheet


def write_collection(
    path: Path, features: Iterable[bytes], sheet: Sheet, **facts: Any
) -> None:
    """Write a FeatureCollection as a stream; the same bytes for the same features.

    Parameters
    ----------
    path : Path
        File to write.
    features : iterable of bytes
        Features as JSON.
    sheet : Sheet
        What the file says of itself, and whether it is compressed.
    **facts
        JSON values to say beside.

    References
    ----------
    RFC 7946, with a foreign member "wsi_pipeline" for what the file says of itself.
    """
    with _stream(path, sheet.gzip) as stream:
        stream.write(b'{"type":"FeatureCollection","wsi_pipeline":')
        stream.write(orjson.dumps(sheet.header() | facts))
        stream.write(b',"features":[')
        for index, line in enumerate(features):
            stream.write(b",\n" if index else b"\n")
            stream.write(line)
        stream.write(b"\n]}\n")


@contextmanager
def _stream(path: Path, compress: bool) -> Iterator[BinaryIO]:
    with path.open("wb") as raw:
        if not compress:
            yield raw
            return
        # no name and no time in the gzip header: the same bytes every time
        with (
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
            io.BufferedWriter(packed, 1 << 16) as buffered,
        ):
            yield buffered
