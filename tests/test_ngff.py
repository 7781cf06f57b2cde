"""The words of OME-Zarr 0.5 and 0.4, and the OME-XML beside the latter."""

import xml.etree.ElementTree as ET

import orjson
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from ome_zarr_models import v04, v05

from wsi_pipeline.classes import MaskClass
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.ngff import (
    Source,
    image_documents,
    label_documents,
    labels_documents,
    level_sizes,
    read_attributes,
)
from wsi_pipeline.ome_xml import image_xml
from wsi_pipeline.publishing import publish_json

VERSIONS = ["0.5", "0.4"]
MODELS = {"0.5": v05, "0.4": v04}
XML = "OME/METADATA.ome.xml"
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
CLASSES = [MaskClass(0, "Background", (0, 0, 0)), MaskClass(1, "Tumour", (200, 0, 9))]
HOSTILE = '<&">]]>\'\n\té漢😀 &amp; --><!ENTITY x "y">.svs'


def source_of(name="a.svs", size_px=(1501, 801)):
    return Source(name, size_px, Scale(0.25, 0.5), "test", Box(3, 4, 700, 600))


def image_of(version, base=1, name="a.svs"):
    source = source_of(name)
    return image_documents(version, source, base, level_sizes(source.size_px, base))


def label_of(version, base=1):
    source = source_of()
    sizes = level_sizes(source.size_px, base)
    return label_documents(version, source, base, sizes, CLASSES, {"model": "m"})


def write(folder, documents):
    for name, data in documents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def element(data):
    return ET.fromstring(data)  # noqa: S314  # our own bytes


def add_levels(folder, version, lead, sizes):
    how = (
        {"dimension_names": ["c", "y", "x"][1 - len(lead) :]}
        if version == "0.5"
        else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    )
    group = zarr.open_group(folder, mode="r+")
    for index, (w, h) in enumerate(sizes):
        shape = (*lead, h, w)
        group.create_array(str(index), shape=shape, chunks=shape, dtype="u1", **how)


def words(version, documents):
    """What the specification's keys hold, whichever file they lie in."""
    if version == "0.5":
        return orjson.loads(documents["zarr.json"])["attributes"]["ome"]
    return orjson.loads(documents[".zattrs"])


@pytest.fixture(params=VERSIONS)
def stored(request, tmp_path):
    """An image with a label, as files: (version, folder)."""
    sizes = level_sizes((1501, 801), 2)
    write(tmp_path, image_of(request.param, 2))
    write(tmp_path / "labels", labels_documents(request.param, ["tissue"]))
    write(tmp_path / "labels" / "tissue", label_of(request.param, 2))
    add_levels(tmp_path, request.param, (3,), sizes)
    add_levels(tmp_path / "labels" / "tissue", request.param, (), sizes)
    return request.param, tmp_path


def test_the_files_of_each_version():
    assert set(image_of("0.5")) == {"zarr.json"}
    assert set(label_of("0.5")) == {"zarr.json"}
    assert set(labels_documents("0.5", ["a"])) == {"zarr.json"}
    assert set(image_of("0.4")) == {".zgroup", ".zattrs", "OME/.zgroup", XML}
    assert set(label_of("0.4")) == {".zgroup", ".zattrs"}
    assert set(labels_documents("0.4", ["a"])) == {".zgroup", ".zattrs"}


def test_ome_zarr_models_accepts_the_image(stored):
    version, folder = stored
    image = MODELS[version].Image.from_zarr(zarr.open_group(folder, mode="r"))
    said = image.attributes.ome if version == "0.5" else image.attributes
    (multiscale,) = said.multiscales
    assert [(a.name, a.type, a.unit) for a in multiscale.axes] == [
        ("c", "channel", None),
        ("y", "space", "micrometer"),
        ("x", "space", "micrometer"),
    ]
    assert [d.path for d in multiscale.datasets] == ["0", "1"]
    omero = said.omero if version == "0.5" else said.omero.model_dump()
    assert [(c["label"], c["color"]) for c in omero["channels"]] == [
        ("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF"),
    ]  # fmt: skip


def test_ome_zarr_models_accepts_the_labels(stored):
    version, folder = stored
    models = MODELS[version]
    labels = models.Labels.from_zarr(zarr.open_group(folder / "labels", mode="r"))
    said = labels.attributes.ome if version == "0.5" else labels.attributes
    assert said.labels == ["tissue"]
    group = zarr.open_group(folder / "labels" / "tissue", mode="r")
    label = models.Image.from_zarr(group)
    assert sorted(label.members) == ["0", "1"]
    stated = read_attributes(folder / "labels" / "tissue")[1]["image-label"]
    kind = v04.image_label_types if version == "0.4" else v05.image_label_types
    checked = kind.Label.model_validate(stated)
    assert [(c.label_value, c.rgba) for c in checked.colors] == [
        (0, (0, 0, 0, 0)), (1, (200, 0, 9, 255)), (255, (0, 0, 0, 0)),
    ]  # fmt: skip
    assert checked.source.image == "../../"


def test_zarr_lists_nothing_but_groups_and_arrays(stored):
    version, folder = stored
    names = sorted(name for name, _ in zarr.open_group(folder, mode="r").members())
    assert names == ["0", "1"] + ["OME"] * (version == "0.4") + ["labels"]


def test_zarr_writes_the_same_group(tmp_path):
    ours = orjson.loads(image_of("0.5")["zarr.json"])
    zarr.create_group(tmp_path, zarr_format=3, attributes=ours["attributes"])
    assert ours == orjson.loads((tmp_path / "zarr.json").read_bytes())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_version_stands_where_the_specification_wants_it(version):
    image, label = words(version, image_of(version)), words(version, label_of(version))
    inside = version if version == "0.4" else None
    assert image["multiscales"][0].get("version") == inside
    assert label["multiscales"][0].get("version") == inside
    assert label["image-label"]["version"] == version
    listed = words(version, labels_documents(version, ["b", "a"]))
    beside = {"version": "0.5"} if version == "0.5" else {}
    assert listed == {"labels": ["b", "a"]} | beside
    assert image.get("version") == beside.get("version")


@pytest.mark.parametrize("base", [1, 2, 4])
@pytest.mark.parametrize("version", VERSIONS)
def test_scales_are_exact(version, base):
    datasets = words(version, image_of(version, base))["multiscales"][0]["datasets"]
    flat = words(version, label_of(version, base))["multiscales"][0]["datasets"]
    assert len(datasets) == {1: 3, 2: 2, 4: 1}[base]
    for index, (dataset, label) in enumerate(zip(datasets, flat, strict=True)):
        y, x = 0.5 * base * 2**index, 0.25 * base * 2**index
        dy, dx = (y - 0.5) / 2, (x - 0.25) / 2
        assert dataset["coordinateTransformations"] == [
            {"type": "scale", "scale": [1.0, y, x]},
            {"type": "translation", "translation": [0.0, dy, dx]},
        ]
        assert label["coordinateTransformations"] == [
            {"type": "scale", "scale": [y, x]},
            {"type": "translation", "translation": [dy, dx]},
        ]


@pytest.mark.parametrize(
    ("base", "w", "h", "x", "y"),
    [
        (1, "1501", "801", "0.25", "0.5"),
        (2, "751", "401", "0.5", "1.0"),
        (4, "376", "201", "1.0", "2.0"),
    ],
)
def test_ome_xml_states_the_base_in_um(base, w, h, x, y):
    root = element(image_of("0.4", base)[XML])
    assert (root.tag, root.attrib) == (OME + "OME", {})
    (image,) = root
    assert (image.tag, image.attrib) == (
        OME + "Image",
        {"ID": "Image:0", "Name": "a.svs"},
    )
    (pixels,) = image
    assert pixels.tag == OME + "Pixels"
    assert pixels.attrib == {
        "ID": "Pixels:0", "DimensionOrder": "XYCZT", "Type": "uint8",
        "BigEndian": "false", "Interleaved": "false",
        "SizeX": w, "SizeY": h, "SizeC": "3", "SizeZ": "1", "SizeT": "1",
        "PhysicalSizeX": x, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": y, "PhysicalSizeYUnit": "µm",
    }  # fmt: skip


def test_ome_xml_names_the_pure_colours():
    (pixels,) = element(image_of("0.4")[XML])[0]
    assert [child.tag for child in pixels] == [
        *[OME + "Channel"] * 3,
        OME + "MetadataOnly",
    ]
    assert [dict(channel.attrib) for channel in pixels[:3]] == [
        {"ID": f"Channel:0:{i}", "Name": name, "Color": rgba, "SamplesPerPixel": "1"}
        for i, (name, rgba) in enumerate(
            [("Red", "-16776961"), ("Green", "16711935"), ("Blue", "65535")]
        )
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_hostile_name_stays_a_name(tmp_path, version):
    documents = image_of(version, name=HOSTILE)
    write(tmp_path, documents)
    attributes = read_attributes(tmp_path)[1]
    assert attributes["wsi_pipeline"]["source"]["name"] == HOSTILE
    assert attributes["multiscales"][0]["name"] == HOSTILE
    if version == "0.4":
        root = element(documents[XML])
        assert root[0].attrib == {"ID": "Image:0", "Name": HOSTILE}
        assert len(list(root.iter())) == 7


def test_characters_that_xml_forbids_are_spelled_out():
    data = image_xml("a\x00\x1b\x7f\ufffe\ud800b", (1, 1), Scale(1e-05, 1.0))
    (image,) = element(data)
    assert image.get("Name") == "a\\x00\\x1b\x7f\\ufffe\\ud800b"
    assert image[0].get("PhysicalSizeX") == "1e-05"


@given(
    name=st.text(),
    mpp=st.floats(min_value=1e-3, max_value=1e3),
    size=st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
)
def test_any_name_and_scale_give_xml_that_states_them(name, mpp, size):
    (image,) = element(image_xml(name, size, Scale(mpp, 2 * mpp)))
    pixels = image[0]
    assert (int(pixels.get("SizeX")), int(pixels.get("SizeY"))) == size
    assert float(pixels.get("PhysicalSizeX")) == mpp
    assert float(pixels.get("PhysicalSizeY")) == 2 * mpp
    if name.isprintable():
        assert image.get("Name") == name


@pytest.mark.parametrize("document", [image_of, label_of])
def test_both_versions_read_back_in_one_shape(tmp_path, document):
    read = {}
    for version in VERSIONS:
        write(tmp_path / version, document(version, 2))
        said, read[version] = read_attributes(tmp_path / version)
        assert said == version
    assert read["0.4"]["multiscales"][0].pop("version") == "0.4"
    for attributes in read.values():
        attributes.get("image-label", {}).pop("version", None)
    assert read["0.4"] == read["0.5"]
    keys = {"wsi_pipeline", "multiscales"}
    assert set(read["0.5"]) == keys | (
        {"image-label"} if document is label_of else set()
    )


def test_the_facts_of_a_label_come_back(tmp_path):
    write(tmp_path, label_of("0.4", 2))
    facts = read_attributes(tmp_path)[1]["wsi_pipeline"]
    assert Source.from_json(facts.pop("source")) == source_of()
    assert facts == {
        "base_downsample": 2,
        "level_sizes_px": [[751, 401], [376, 201]],
        "model": "m",
    }


def test_the_same_words_are_the_same_bytes_as_any_published_json(tmp_path):
    assert image_of("0.4", 2) == image_of("0.4", 2)
    for documents in (image_of("0.5"), image_of("0.4"), label_of("0.4")):
        for name in set(documents) - {XML}:
            publish_json(tmp_path / "again", orjson.loads(documents[name]))
            assert (tmp_path / "again").read_bytes() == documents[name]


def test_a_folder_without_metadata_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing: neither zarr\.json nor"):
        read_attributes(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("zarr.json", b"{", orjson.JSONDecodeError),
        (".zattrs", b"{", orjson.JSONDecodeError),
        ("zarr.json", b'{"attributes": {}}', KeyError),
        (".zattrs", b'{"multiscales": []}', KeyError),
        (".zattrs", b"[]", TypeError),
    ],
)
def test_metadata_of_another_make_is_refused(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        read_attributes(tmp_path)
