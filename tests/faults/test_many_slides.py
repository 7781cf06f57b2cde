"""Many slides in one process: memory and files stay bounded, exports open elsewhere."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import shapely
import zarr
from ome_zarr_models.v05 import Image, ImageLabel

from tests.small_runs import MODEL, SMALL, small_slide
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.batch import BatchHooks, Outcome, run_batch
from wsi_pipeline.geometry import Box
from wsi_pipeline.layout import Layout
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.results import SlideFolder

SLIDES, ENTRIES, WARM_UP = 50, 200, 20
MOST_GROWTH_BYTES = 1 << 20


@dataclass(frozen=True)
class Load:
    """What a process holds after a slide."""

    resident_bytes: int
    files: int

    @classmethod
    def now(cls) -> "Load":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), descriptors)


@dataclass(frozen=True)
class Batch:
    """Folders of results, and the load after each slide."""

    folders: list[SlideFolder]
    loads: list[Load]


def run_many(folder: Path, slides: int, entries: int) -> Batch:
    """Some slides, each under several names, in one batch."""
    made = []
    for seed in range(slides):
        place = folder / "made" / str(seed)
        place.mkdir(parents=True)
        made.append(small_slide(place, 100 + seed))
    named = folder / "slides"
    named.mkdir()
    for entry in range(entries):
        os.link(made[entry % slides], named / f"{entry:03}.tif")
    loads: list[Load] = []

    def ended(outcome: Outcome) -> None:
        loads.append(Load.now())

    out = folder / "out"
    model, hooks = find_model(MODEL), BatchHooks(ended=ended)
    result = run_batch([named], out, model, SMALL, hooks=hooks)
    assert result.count("done") == entries
    ids = [outcome.manifest.slide_id for outcome in result.outcomes[:slides]]
    return Batch([SlideFolder(out / name) for name in ids], loads)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    return run_many(tmp_path_factory.mktemp("few"), 2, 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    return run_many(tmp_path_factory.mktemp("many"), SLIDES, ENTRIES)


def growth_bytes(loads: Iterable[Load]) -> float:
    """Resident memory gained per slide, as a straight line has it."""
    sizes = [load.resident_bytes for load in loads]
    return float(np.polyfit(np.arange(len(sizes)), sizes, 1)[0])


def grows(loads: list[Load]) -> bool:
    """Whether memory or open files follow the number of slides."""
    files = {load.files for load in loads}
    return growth_bytes(loads) > MOST_GROWTH_BYTES or len(files) > 1


@pytest.mark.faults
@pytest.mark.promise("R8")
def test_two_hundred_slides_take_no_more_memory_and_files_than_twenty(
    many: Batch, record_property: Callable[[str, object], None]
) -> None:
    after = many.loads[WARM_UP:]
    record_property("measured", f"{growth_bytes(after) / 2**20:.3f} MB per slide")
    assert len(after) == ENTRIES - WARM_UP
    assert not grows(after)


@pytest.mark.promise("R8")
@pytest.mark.parametrize(
    ("bytes_each", "files_each", "expected"),
    [(0, 0, False), (2**19, 0, False), (2**21, 0, True), (0, 1, True)],
)
def test_a_leak_is_seen(bytes_each: int, files_each: int, expected: bool) -> None:
    noise = np.random.default_rng(0).integers(-(2**22), 2**22, 180)
    loads = [
        Load(2**30 + n * bytes_each + int(noise[n]), 9 + n * files_each)
        for n in range(180)
    ]
    assert grows(loads) is expected


@pytest.mark.promise("R8")
def test_ten_gigapixels_are_few_tasks() -> None:
    layout = Layout()
    tasks, side = 0, 100_000
    while side > 1:
        tasks += len(list(Box(0, 0, side, side).blocks(layout.block_px)))
        side >>= layout.depth
    assert 500 < tasks <= 20_000


def export_faults(folder: SlideFolder) -> list[str]:
    """What QuPath, or a reader of OME-Zarr, would stumble over."""
    wrong = []
    for path in sorted(folder.path.glob("*.geojson")):
        wrong += [f"{path.name}: {found.effect}" for found in check_geojson(path)]
        for feature in orjson.loads(path.read_bytes())["features"]:
            wrong += feature_faults(feature)
    try:
        Image.from_zarr(zarr.open_group(folder.pyramid, mode="r"))
        labels = zarr.open_group(folder.pyramid / "labels", mode="r")
        for name in labels.attrs["ome"]["labels"]:
            ImageLabel.from_zarr(labels[name])
    except ValueError as error:
        wrong.append(f"OME-Zarr: {error}")
    return wrong


def feature_faults(feature: dict[str, Any]) -> list[str]:
    """Rules of QuPath's GeoJSON, read anew from its fields."""
    wrong = []
    properties = feature["properties"]
    if feature["type"] != "Feature" or str(uuid.UUID(feature["id"])) != feature["id"]:
        wrong.append("no feature with a UUID")
    if properties["objectType"] not in ("annotation", "detection"):
        wrong.append(f"object type {properties['objectType']}")
    named = properties.get("classification")
    if named and (not named["name"] or len(named["color"]) != 3):
        wrong.append(f"class {named}")
    shape = shapely.geometry.shape(feature["geometry"])
    if not (shape.is_valid and shapely.set_precision(shape, 0.01).is_valid):
        wrong.append("geometry that is not valid")
    return wrong


@pytest.mark.promise("R20")
def test_exports_of_some_slides_are_valid(few: Batch) -> None:
    for folder in few.folders:
        assert export_faults(folder) == []


@pytest.mark.faults
@pytest.mark.promise("R20")
def test_exports_of_fifty_slides_are_valid(
    many: Batch, record_property: Callable[[str, object], None]
) -> None:
    valid = [not export_faults(folder) for folder in many.folders]
    record_property("measured", f"{sum(valid)} of {len(valid)} slides' exports valid")
    assert all(valid)
    assert len(valid) == SLIDES


def spoil_geometry(folder: SlideFolder) -> None:
    path = folder.path / "segmentation.geojson"
    document = orjson.loads(path.read_bytes())
    bow = [[[0, 0], [9, 9], [9, 0], [0, 9], [0, 0]]]
    document["features"][0]["geometry"] = {"type": "Polygon", "coordinates": bow}
    path.write_bytes(orjson.dumps(document))


def spoil_metadata(folder: SlideFolder) -> None:
    path = folder.path / "slide.ome.zarr" / "zarr.json"
    document = orjson.loads(path.read_bytes())
    del document["attributes"]["ome"]["multiscales"]
    path.write_bytes(orjson.dumps(document))


@pytest.mark.promise("R20")
@pytest.mark.parametrize("spoil", [spoil_geometry, spoil_metadata])
def test_an_export_that_is_not_valid_is_seen(
    few: Batch, tmp_path: Path, spoil: Callable[[SlideFolder], None]
) -> None:
    shutil.copytree(few.folders[0].path, tmp_path / "copy")
    copy = SlideFolder(tmp_path / "copy")
    spoil(copy)
    assert export_faults(copy) != []
