"""Labels inside OME-Zarr as they lie on disk, by ome-zarr-models, 0.4 and 0.5."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr_models import v04, v05

from tests.test_geojson import CLASSES, glands
from wsi_pipeline.codecs import BloscLz4
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.ngff import Source, Version
from wsi_pipeline.pyramid import MaskPyramid, Pyramid

SIZE = (2501, 1203)
MODELS: dict[Version, Any] = {"0.4": v04, "0.5": v05}


@pytest.fixture(params=["0.4", "0.5"])
def stored(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Version, Pyramid, MaskPyramid]:
    """An image and a label that was written the way stitching writes it."""
    version: Version = request.param
    source = Source("a.svs", SIZE, Scale(0.25, 0.5), "test", Box(0, 0, *SIZE))
    layout = Layout("0.4", 1024, codec=BloscLz4()) if version == "0.4" else Layout()
    image = Pyramid.create(tmp_path / "s.ome.zarr", source, 2, layout)
    path = image.labels_path / "model"
    label = MaskPyramid.create(
        path, source, 2, CLASSES, version=version, levels=len(image.levels)
    )
    values = np.kron(glands(2, 128), np.ones((5, 10), np.uint8))
    for block in label.levels[0].box.blocks(label.shard_px(0)):
        label.fill(0, block, np.ascontiguousarray(values[block.rows, block.columns]))
    label.write_coarser(filled=True)
    image.publish_labels_list()
    return version, image, label


def said(version: Version, group: Any) -> Any:
    """Attributes, wherever the version has them."""
    return group.attributes.ome if version == "0.5" else group.attributes


def steps(dataset: Any) -> list[list[float]]:
    """Scale and translation along y and x."""
    both = dataset.coordinateTransformations
    return [list(both[0].scale[-2:]), list(both[1].translation[-2:])]


def test_label_is_valid_and_lies_on_the_levels_of_its_image(
    stored: tuple[Version, Pyramid, MaskPyramid],
) -> None:
    version, pyramid, label = stored
    models = MODELS[version]
    image = models.Image.from_zarr(zarr.open_group(pyramid.path, mode="r"))
    found = models.ImageLabel.from_zarr(zarr.open_group(label.path, mode="r"))
    (ours,), (its,) = (said(version, g).multiscales for g in (found, image))
    assert [axis.name for axis in ours.axes] == ["y", "x"]
    assert len(ours.datasets) == len(its.datasets) == 3
    for mine, other in zip(ours.datasets, its.datasets, strict=True):
        assert mine.path == other.path
        assert steps(mine) == steps(other)
        shape = zarr.open_array(label.path / mine.path, mode="r").shape
        assert shape == zarr.open_array(pyramid.path / mine.path, mode="r").shape[1:]


def test_label_states_the_colours_and_names_of_its_classes(
    stored: tuple[Version, Pyramid, MaskPyramid],
) -> None:
    version, pyramid, label = stored
    models = MODELS[version]
    labels = models.Labels.from_zarr(zarr.open_group(pyramid.labels_path, mode="r"))
    assert said(version, labels).labels == ["model"]
    group = models.ImageLabel.from_zarr(zarr.open_group(label.path, mode="r"))
    about = said(version, group).image_label
    colours = {c.label_value: c.rgba for c in about.colors}
    assert colours == {
        0: (255, 255, 255, 0),
        1: (240, 228, 66, 255),
        2: (0, 114, 178, 255),
        255: (0, 0, 0, 0),
    }
    names = {p["label-value"]: p["name"] for p in map(plain, about.properties)}
    assert names == {
        0: "Background",
        1: "Stroma",
        2: "Gland <b>",
        255: "Not computed",
    }
    assert about.source.image == "../../"
    array = zarr.open_array(label.path / "0", mode="r")
    assert (array.dtype.kind, set(np.unique(array[:]).tolist())) == ("u", {0, 1, 2})


def plain(row: Any) -> dict[str, Any]:
    """A row of properties as JSON has it."""
    return row if isinstance(row, dict) else row.model_dump(by_alias=True)


@pytest.mark.parametrize("wrong", ["colors", "multiscales"])
def test_models_refuse_what_is_wrong(
    stored: tuple[Version, Pyramid, MaskPyramid], wrong: str
) -> None:
    version, _, label = stored
    group = zarr.open_group(label.path, mode="r+")
    attributes = dict(group.attrs)
    words = attributes["ome"] if version == "0.5" else attributes
    if wrong == "colors":
        words["image-label"]["colors"][0]["rgba"] = [0, 0, 999, 0]
    else:
        words["multiscales"][0]["datasets"].append({"path": "9"})
    group.attrs.put(attributes)
    with pytest.raises(ValueError, match=r"rgba|datasets|path"):
        MODELS[version].ImageLabel.from_zarr(zarr.open_group(label.path, mode="r"))
