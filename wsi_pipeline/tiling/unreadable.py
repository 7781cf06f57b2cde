"""Tells which tiles of a slide could not be decoded: per block, then for the pyramid.

A block leaves a file only where it met some; the pyramid's attributes list them all.
"""

from collections.abc import Collection
from pathlib import Path

import orjson

from wsi_pipeline.geometry import Box
from wsi_pipeline.ngff import image_documents
from wsi_pipeline.places import Place, list_objects
from wsi_pipeline.publishing import STAGING, publish_bytes, remove
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.written import Upload, Written

_FOLDER = "unreadable"


def note_unreadable(
    pyramid: Pyramid, block: Box, tiles: Collection[Box]
) -> list[Written | Upload]:
    """Write down what a block could not decode; nothing where there is nothing.

    Parameters
    ----------
    pyramid : Pyramid
        The pyramid that is being written.
    block : Box
        On the grid of its base.
    tiles : collection of Box
        Native tiles, level-0 pixels.

    Returns
    -------
    list of Written or Upload
        The file, for `settle` to bring home.
    """
    if not tiles:
        return []
    place = pyramid.path / _FOLDER / f"{block.x}-{block.y}.json"
    data = orjson.dumps(_rows(tiles))
    if isinstance(place, Path):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
        return [Written.of(place)]
    upload = Upload(place)
    upload.write(data)
    return [upload]


def gather_unreadable(pyramid: Pyramid) -> tuple[Box, ...]:
    """Move what the blocks noted into the pyramid's attributes.

    Parameters
    ----------
    pyramid : Pyramid
        All of its blocks are written, its name has not appeared yet.

    Returns
    -------
    tuple of Box
        Native tiles, level-0 pixels, each once, by y, then x.
    """
    folder = pyramid.path / _FOLDER
    files: list[Place]
    if isinstance(folder, Path):
        files = list(folder.glob("*.json"))
    else:
        files = [folder / name for name in list_objects(folder)]
    found = {Box(*row) for file in files for row in orjson.loads(file.read_bytes())}
    tiles = tuple(Box(*row) for row in _rows(found))
    if tiles:
        documents = image_documents(
            pyramid.version,
            pyramid.source,
            int(pyramid.levels[0].downsample),
            [level.size_px for level in pyramid.levels],
            tiles,
        )
        name = "zarr.json" if pyramid.version == "0.5" else ".zattrs"
        local = isinstance(pyramid.path, Path)  # in a store it announces the pyramid
        parent = pyramid.path if local else pyramid.path / STAGING
        publish_bytes(parent / name, documents[name])
        remove(folder)
    return tiles


def _rows(tiles: Collection[Box]) -> list[tuple[int, int, int, int]]:
    """(x, y, w, h) of tiles, in one order."""
    ordered = sorted(tiles, key=lambda tile: (tile.y, tile.x))
    return [(tile.x, tile.y, tile.w, tile.h) for tile in ordered]
