"""Areas of classes in all results of a slide: alike, or told where they differ."""

import gzip
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tifffile
from numpy.typing import NDArray

from tests.test_geojson import EXACT, glands, make_masks
from wsi_pipeline.agreement import find_disagreements
from wsi_pipeline.classes import COVERAGE_CLASSES, SKIPPED
from wsi_pipeline.config import ExportOptions, RunConfig
from wsi_pipeline.errors import RegionError
from wsi_pipeline.exporters import EXPORTERS, export_masks
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.results import Manifest, SlideFolder

BOUNDS = Box(40, 60, 500, 460)
LOSSY = ExportOptions(simplify_um=2, min_area_um2=300, min_hole_um2=300)


def finish(
    folder: Path, options: ExportOptions = EXACT, mask: NDArray[np.uint8] | None = None
) -> SlideFolder:
    """Results of a slide of 600 x 600 px with bounds, its mask at half the size."""
    slide = SlideFolder(folder / "s1")
    slide.prepare()
    source = Source("a.mrxs", (600, 600), Scale(0.5, 0.5), "test", BOUNDS)
    Pyramid.create(folder / "s1" / "slide.ome.zarr", source, 2, Layout())
    mask = glands(5, 300) if mask is None else mask
    masks = make_masks(slide.label("m"), mask, base=2, bounds=BOUNDS)
    done = np.ones((300, 300), np.uint8)
    done[:90, 150:] = SKIPPED  # outlined in the GeoJSON, and no class
    covered = make_masks(
        slide.label("coverage"), done, base=2, bounds=BOUNDS, classes=COVERAGE_CLASSES
    )
    areas = {c.name: int((mask == c.value).sum()) / 1e6 for c in masks.classes}
    files = []
    for name in EXPORTERS.names():
        path = slide.path / EXPORTERS.load(name).file_name
        found = export_masks(masks, path, options, slide_id="s1", coverage=covered)
        files.append(asdict(found) | {"path": found.path.name})
    facts = {"stitch": {"area_mm2": areas}, "export": {"files": files}}
    config = RunConfig(export=options).model_dump(mode="json")
    told = Manifest("s1", "a.mrxs", "k", "done", "", facts, config, {"name": "m"})
    told.publish(slide)
    columns = [f"area_mm2_{name}" for name in areas if name != "Background"]
    numbers = [f"{areas[name]:.10g}" for name in areas if name != "Background"]
    table = [["slide_id", *columns], ["s0", "1", "2"], ["s1", *numbers]]
    lines = "".join(",".join(row) + "\n" for row in table)
    (folder / "slides.csv").write_text(lines)
    return slide


@pytest.mark.parametrize(
    "options",
    [
        EXACT,
        LOSSY,
        LOSSY.model_copy(update={"frame": "level0", "gzip": True}),
        LOSSY.model_copy(update={"group": "class", "zip": True}),
        EXACT.model_copy(update={"frame": "qupath", "objects": "detection"}),
    ],
)
def test_results_of_one_export_agree(tmp_path: Path, options: ExportOptions) -> None:
    slide = finish(tmp_path, options)
    assert find_disagreements(slide) == []
    told = orjson.loads(slide.manifest.read_bytes())["facts"]["export"]["files"]
    changed = told[0]["classes"][0]
    lossy = options.simplify_um > 0
    if not options.ending:
        assert b'"Region*"' in (slide.path / "segmentation.geojson").read_bytes()
    assert (changed["dropped_um2"] > 0) == lossy
    assert (changed["outside_um2"] > 0) == (options.frame == "qupath")


def test_mask_without_objects_agrees(tmp_path: Path) -> None:
    slide = finish(tmp_path, mask=np.full((300, 300), 255, np.uint8))
    assert find_disagreements(slide) == []


def edit_manifest(slide: SlideFolder, change: Callable[[Any], object]) -> None:
    document = orjson.loads(slide.manifest.read_bytes())
    change(document["facts"])
    slide.manifest.write_bytes(orjson.dumps(document))


def change_label(slide: SlideFolder) -> None:
    label = Pyramid(slide.pyramid).masks("m")
    whole = label.levels[0].box
    values = label.read_level(whole, 0).copy()
    y, x = np.argwhere(values == 1)[0]
    values[y, x] = 0
    label.put(0, whole, values)


def change_manifest(slide: SlideFolder) -> None:
    def more(facts: Any) -> None:
        facts["stitch"]["area_mm2"]["Stroma"] += 1e-6

    edit_manifest(slide, more)


def change_slides(slide: SlideFolder) -> None:
    path = slide.path.parent / "slides.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    rows[2][1] = str(float(rows[2][1]) + 1e-6)
    path.write_text("".join(",".join(row) + "\n" for row in rows))


def change_geojson(slide: SlideFolder) -> float:
    """Take the first object of Stroma away; returns its um2."""
    path = slide.path / "segmentation.geojson"
    head, first, *rest = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([head, *rest]))
    properties = orjson.loads(first.removesuffix(b","))["properties"]
    assert properties["classification"]["name"] == "Stroma"
    return float(properties["measurements"]["Area um^2"])


def change_parquet(slide: SlideFolder) -> None:
    path = slide.path / "segmentation.parquet"
    table = pq.read_table(path)
    first = pc.index(table["class"], "Stroma").as_py()
    pq.write_table(table.filter(pc.not_equal(table["id"], table["id"][first])), path)


def change_areas(slide: SlideFolder) -> None:
    path = slide.path / "areas.csv"
    head, stroma, *rest = path.read_text().splitlines()
    cells = stroma.split(",")
    cells[3] = str(float(cells[3]) + 1e-6)
    path.write_text("\n".join([head, ",".join(cells), *rest]))


def change_tiff(slide: SlideFolder) -> None:
    path = slide.path / "segmentation.ome.tif"
    values = tifffile.imread(path).copy()
    y, x = np.argwhere(values == 1)[0]
    values[y, x] = 0
    tifffile.imwrite(path, values, tile=(1024, 1024))


SOURCES = {
    "labels/m": change_label,
    "manifest.json": change_manifest,
    "slides.csv": change_slides,
    "segmentation.geojson": change_geojson,
    "segmentation.parquet": change_parquet,
    "segmentation.ome.tif": change_tiff,
    "areas.csv": change_areas,
}


@pytest.mark.parametrize("changed", SOURCES)
def test_source_that_differs_from_all_others_is_named(
    tmp_path: Path, changed: str
) -> None:
    slide = finish(tmp_path)
    SOURCES[changed](slide)
    (told,) = find_disagreements(slide)
    assert told.startswith("class 'Stroma': ")
    groups = [part.split(" mm2 in ") for part in told[16:].split("; ")]
    names = [set(sources.split(", ")) for _, sources in groups]
    assert sorted(names, key=len) == [{changed}, set(SOURCES) - {changed}]
    areas = {float(area) for area, _ in groups}
    assert len(areas) == 2  # told in enough digits to see it


def test_loss_is_not_hidden_by_what_the_export_says_of_itself(tmp_path: Path) -> None:
    slide = finish(tmp_path)
    lost_um2 = change_geojson(slide)

    def credit(name: str, um2: float) -> list[str]:
        def add(facts: Any) -> None:
            facts["export"]["files"][0]["classes"][0][name] += um2

        edit_manifest(slide, add)
        return find_disagreements(slide)

    (told,) = credit("simplified_um2", -lost_um2)
    assert "when it was simplified; " in told
    assert credit("simplified_um2", lost_um2)[0].startswith("class 'Stroma': ")
    (told,) = credit("outside_um2", lost_um2)
    assert "beyond its frame; the label has " in told


def test_class_that_only_a_file_holds_is_told(tmp_path: Path) -> None:
    slide = finish(tmp_path)
    path = slide.path / "segmentation.geojson"
    path.write_bytes(path.read_bytes().replace(b'"Stroma"', b'"Straw"'))
    first, second = sorted(find_disagreements(slide))
    assert first.startswith("class 'Straw': 0 mm2 in labels/m, ")
    assert second.startswith("class 'Stroma': ")


def test_file_that_is_lost_or_damaged_is_named(tmp_path: Path) -> None:
    slide = finish(tmp_path, EXACT.model_copy(update={"gzip": True}))
    path = slide.path / "segmentation.geojson.gz"
    whole = gzip.decompress(path.read_bytes())
    for damaged in (whole[:-4], whole[: len(whole) // 2], b"{}", b""):
        path.write_bytes(gzip.compress(damaged))
        with pytest.raises(RegionError, match=r"geojson\.gz: not as an export wrote"):
            find_disagreements(slide)
    path.write_bytes(gzip.compress(whole))
    for name in ("segmentation.parquet", "areas.csv", "segmentation.ome.tif"):
        kept = (slide.path / name).read_bytes()
        (slide.path / name).write_bytes(b"x\n" * 99)
        with pytest.raises(RegionError, match="not as an export wrote"):
            find_disagreements(slide)
        (slide.path / name).write_bytes(kept)
    (slide.path.parent / "slides.csv").unlink()  # of a slide that was run alone
    assert find_disagreements(slide) == []
    path.unlink()
    with pytest.raises(RegionError, match=r"segmentation\.geojson\.gz"):
        find_disagreements(slide)


def test_only_a_slide_that_is_done_is_looked_at(tmp_path: Path) -> None:
    slide = finish(tmp_path)
    done = Manifest.load(slide)
    assert done is not None
    replace(done, facts={}, status="failed").publish(slide)
    with pytest.raises(RegionError, match="a slide that is done"):
        find_disagreements(slide)
    slide.manifest.unlink()
    with pytest.raises(RegionError, match="a slide that is done"):
        find_disagreements(slide)
