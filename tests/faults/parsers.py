"""Our own parsers, each with whole examples and the only errors it may raise."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save

from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import WsiError
from wsi_pipeline.models.cards import SHIPPED, read_card
from wsi_pipeline.models.weights import read_tensors, tensor_names
from wsi_pipeline.repeating import to_toml
from wsi_pipeline.results import Manifest, SlideFolder, StageRecord
from wsi_pipeline.samplesheet import read_samplesheet

RING = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
FEATURE = {
    "type": "Feature",
    "id": "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
    "geometry": {"type": "Polygon", "coordinates": [RING]},
    "properties": {"classification": {"name": "Tumor", "color": [200, 0, 0]}},
}


@dataclass(frozen=True)
class Parser:
    """A parser of files.

    Parameters
    ----------
    name : str
        Of the file that it reads, with the ending that it expects.
    read : callable
        Reads the file.
    examples : tuple of bytes
        Files that it takes.
    """

    name: str
    read: Callable[[Path], object]
    examples: tuple[bytes, ...]

    def feed(self, data: bytes, folder: Path) -> None:
        """Have it read some bytes; only errors of our own are in order."""
        path = folder / self.name
        path.write_bytes(data)
        with suppress(WsiError):
            self.read(path)


def read_manifest(path: Path) -> None:
    """The same bytes as both of its files, and as the record of a stage."""
    folder = SlideFolder(path.parent)
    (path.parent / "stages").mkdir(exist_ok=True)
    for file in (path.parent / "run.json", path.parent / "stages" / "tile.json"):
        file.write_bytes(path.read_bytes())
    manifest = Manifest.load(folder)
    if manifest:
        manifest.documents()
    record = folder.record("tile")
    if record:
        folder.holds(record)


def read_weights(path: Path) -> None:
    """Header, then all of it."""
    tensor_names(path)
    read_tensors(path)


def _json(value: object) -> bytes:
    return orjson.dumps(value, default=vars)


MANIFEST = Manifest("s-1", "a.svs", "k", "done", "", {"tile": {"mpp": [0.5, 0.5]}})
RECORD = StageRecord("tile", "k", {"workers": 0}, {"slide.ome.zarr": 9}, {"levels": 3})
PARSERS = {
    "config": Parser(
        "run.toml",
        RunConfig.from_toml,
        (to_toml(RunConfig().model_dump(mode="json")).encode(), b"mpp = 0.5\n"),
    ),
    "manifest": Parser(
        "manifest.json",
        read_manifest,
        (_json(MANIFEST.documents()[0]), _json(MANIFEST), _json(RECORD)),
    ),
    "geojson": Parser(
        "a.geojson",
        check_geojson,
        (_json({"type": "FeatureCollection", "features": [FEATURE]}), _json([FEATURE])),
    ),
    "safetensors": Parser(
        "a.safetensors", read_weights, (save({"a": np.zeros(3, np.float32)}),)
    ),
    "samplesheet": Parser(
        "sheet.csv",
        read_samplesheet,
        (b"sample,slide,mpp,tissue\ns-1,a.svs,0.5,\n", b"sample,slide\na,s3://b/c\n"),
    ),
    "card": Parser(
        "card.json",
        lambda path: read_card(path.parent),
        tuple(path.read_bytes() for path in sorted(SHIPPED.glob("*/card.json"))),
    ),
}
