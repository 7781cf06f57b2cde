"""A user's own folder and slides; painted strips, and PCa-Histo behind them."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from tests.dataset_minis import (
    bands,
    mini_folder,
    mini_pca_histo,
    mini_slides,
    polygon,
    save,
    write,
)
from tests.tiff_files import tissue_like
from wsi_pipeline.annotations.painting import Areas
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.geometry import Box
from wsi_pipeline.training.datasets import DatasetOptions, load_dataset
from wsi_pipeline.training.datasets.pca_histo import strip_nodes
from wsi_pipeline.training.datasets.slide_labels import label_region
from wsi_pipeline.training.datasets.strip_files import paint_strips
from wsi_pipeline.training.datasets.strips import SPLITS, lay_cases

TINY = DatasetOptions(scale=0.02)

# ---------------------------------------------------------------- folder


def test_a_folder_maps_its_values_to_channels(tmp_path: Path) -> None:
    mini_folder(tmp_path)
    data = load_dataset("folder", tmp_path)
    assert [(kind.value, kind.name) for kind in data.classes] == [
        (0, "Stroma"),
        (1, "Tumour"),
    ]
    # stored 7, 3, 255 from the left
    assert data.train.labels[0][0, ::16].tolist() == [1, 0, 255]
    assert data.train.mpp == 0.5
    with Image.open(tmp_path / "images" / "a0.png") as image:
        wanted = np.asarray(image).transpose(2, 0, 1)
    np.testing.assert_array_equal(data.train.images[0], wanted)


def test_a_folder_is_split_as_its_table_says(tmp_path: Path) -> None:
    mini_folder(tmp_path)
    data = load_dataset("folder", tmp_path)
    assert data.validation.names == ("a6", "a7")
    assert data.test is not None
    assert data.test.groups == ("p4", "p4")
    assert data.cases_disjoint


def test_groups_alone_are_dealt_by_hash(tmp_path: Path) -> None:
    mini_folder(tmp_path, split="groups")
    data = load_dataset("folder", tmp_path)
    assert data.cases_disjoint
    assert data.test is not None
    groups = [set(p.groups) for p in (data.train, data.validation, data.test)]
    assert sorted(g for part in groups for g in part) == [f"p{n}" for n in range(5)]


def test_a_folder_without_patients_says_that_they_may_be_shared(tmp_path: Path) -> None:
    mini_folder(tmp_path, split=None)
    data = load_dataset("folder", tmp_path)
    assert not data.cases_disjoint
    assert "patients are not known" in data.note


def test_a_split_of_the_user_that_shares_patients_is_told(tmp_path: Path) -> None:
    mini_folder(tmp_path)
    path = tmp_path / "split.csv"
    path.write_text(path.read_text().replace("a6,p3", "a6,p0"))
    data = load_dataset("folder", tmp_path)
    assert not data.cases_disjoint
    assert data.note.startswith("1 groups are in two splits")


def test_the_scale_comes_from_the_file_or_the_option(tmp_path: Path) -> None:
    mini_folder(tmp_path)
    options = DatasetOptions(mpp=0.25)
    assert load_dataset("folder", tmp_path, options=options).train.mpp == 0.25
    (tmp_path / "mpp.txt").unlink()
    assert load_dataset("folder", tmp_path, options=options).train.mpp == 0.25
    with pytest.raises(ConfigError, match=r"mpp\.txt there, or give the option mpp"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize("text", ["half", "0", "-1", "inf", "nan", ""])
def test_a_scale_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    mini_folder(tmp_path)
    (tmp_path / "mpp.txt").write_text(text)
    with pytest.raises(ConfigError, match=r"mpp\.txt: "):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("3,Again,1,2,3", "is there twice"),
        ("9,Stroma,1,2,3", "is there twice"),
        ("255,Lumen,1,2,3", "0 to 254"),
        ("x,Lumen,1,2,3", "0 to 254"),
        ("9,Lumen,1,2,256", "0 to 255"),
        ("9, ,1,2,3", "a name"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    row: str, told: str, tmp_path: Path
) -> None:
    mini_folder(tmp_path)
    path = tmp_path / "classes.csv"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(ConfigError, match=rf"classes\.csv: .*{told}"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("a0,p0,train\n", "", "no row for image 'a0'"),
        ("a0,p0,train", "a0,p0,train\nb0,p0,train", "no image for row 'b0'"),
        ("a1,p0,train", "a0,p0,train", "'a0' is there twice"),
        ("a0,p0,train", "a0,p0,both", "got 'both'"),
        ("a0,p0,train", "a0,p0,", "got ''"),
        (",val", ",train", "no image in split 'val'"),
        ("name,", "names,", "no column name"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(
    old: str, new: str, told: str, tmp_path: Path
) -> None:
    mini_folder(tmp_path)
    path = tmp_path / "split.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=rf"split\.csv: .*{told}"):
        load_dataset("folder", tmp_path)


def test_a_value_that_no_class_has_is_refused(tmp_path: Path) -> None:
    mini = mini_folder(tmp_path)
    save(mini.mask, bands(32, 48, [3, 4]))
    train = load_dataset("folder", tmp_path).train
    with pytest.raises(ConfigError, match=r"a0\.png: unknown values \[4\]"):
        train.labels[0]


def test_masks_of_colours_are_refused(tmp_path: Path) -> None:
    mini = mini_folder(tmp_path)
    save(mini.mask, tissue_like(48, 32))
    with pytest.raises(ConfigError, match=r"a0\.png: expected one value .* mode RGB"):
        load_dataset("folder", tmp_path).train.labels[0]


def test_a_palette_is_read_by_its_indices(tmp_path: Path) -> None:
    mini = mini_folder(tmp_path)
    mask = Image.fromarray(bands(32, 48, [7, 3, 255])).convert("P")
    mask.putpalette([200] * 768)
    mask.save(mini.mask)
    labels = load_dataset("folder", tmp_path).train.labels[0]
    assert labels[0, ::16].tolist() == [1, 0, 255]


def test_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    mini = mini_folder(tmp_path)
    Image.fromarray(np.zeros((32, 48), np.uint16)).save(mini.image)
    with pytest.raises(ConfigError, match=r"a0\.png: expected 8 bits"):
        load_dataset("folder", tmp_path).train.images[0]


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    mini_folder(tmp_path)
    save(tmp_path / "images" / "a0.jpg", tissue_like(48, 32))
    with pytest.raises(ConfigError, match="'a0' is there twice"):
        load_dataset("folder", tmp_path)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    mini_folder(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="images: no image there"):
        load_dataset("folder", tmp_path)


# ---------------------------------------------------------------- strips


def test_strips_are_as_many_and_as_large_as_the_paper_lists() -> None:
    options = DatasetOptions(scale=1)
    data = load_dataset("synthetic-strips", None, options=options)
    assert data.test is not None
    sizes = [len(part) for part in (data.train, data.validation, data.test)]
    assert sizes == [200, 27, 39]
    cases = [case for split, _ in SPLITS for case in lay_cases(split, options)]
    assert len({case.number for case in cases}) == len(cases) == 33
    assert len({case.seed for case in cases}) == 33
    widths = [case.width_px for case in cases for _ in case.heights_px]
    assert (min(widths), max(widths)) == (3386, 20440)
    heights = [h for case in cases for h in case.heights_px]
    assert (min(heights), max(heights)) == (229, 2000)
    # 18.6 Mpx is the mean that the lists give
    pixels = [w * h for w, h in zip(widths, heights, strict=True)]
    assert round(float(np.mean(pixels)) / 1e6, 1) == 18.6


def test_strips_of_a_case_are_one_picture() -> None:
    case = lay_cases("validation", TINY)[0]
    top, below = case.paint(0), case.paint(1)
    assert top[0].shape == (3, 40, 299)
    assert top[1].shape == (40, 299)
    # pixels go on across the cut: rows that touch differ less than rows far apart
    near = np.abs(top[0][:, -1].astype(int) - below[0][:, 0]).mean()
    far = np.abs(top[0][:, 0].astype(int) - below[0][:, -1]).mean()
    assert near < far


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25])
def test_strips_of_every_size_show_the_same_tissue(scale: float) -> None:
    case = lay_cases("test", DatasetOptions(scale=scale))[0]
    assert case.heights_px[0] * case.mpp == 1000
    assert case.width_px * case.mpp == 3600
    # one of 80 x 800 nodes has 25 px of the paper's strips, or a little less
    size = case.heights_px[0], case.width_px
    assert 10 <= case.heights_px[0] * case.mpp / strip_nodes(size)[0] <= 12.5


def test_strips_depend_on_the_seed_alone() -> None:
    data = [
        load_dataset("synthetic-strips", None, options=options).validation
        for options in (TINY, TINY, DatasetOptions(scale=0.02, seed=1))
    ]
    np.testing.assert_array_equal(data[0].images[2], data[1].images[2])
    np.testing.assert_array_equal(data[0].labels[2], data[1].labels[2])
    assert (data[0].images[2] != data[2].images[2]).any()


def test_every_split_of_strips_has_every_class() -> None:
    options = DatasetOptions(scale=0.1)
    for split in ("validation", "test"):
        found = set()
        for case in lay_cases(split, options):
            world, (left, top) = case.world()
            x = (left + np.linspace(0, case.width_px, 80)) * case.mpp
            y = (top + np.linspace(0, sum(case.heights_px), 80)) * case.mpp
            grid = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
            found |= set(np.unique(world.layout.survey(*grid).pattern).tolist())
        assert found == {0, 1, 2, 3, 4, 5}


def test_written_strips_come_back_as_they_were_painted(tmp_path: Path) -> None:
    done = []
    count = paint_strips(
        tmp_path,
        TINY,
        splits=("validation",),
        progress=lambda n, total: done.append((n, total)),
    )
    assert count == 27
    assert done == [(n, 27) for n in range(1, 28)]
    path = tmp_path / "split.csv"
    # its first case shall train here
    path.write_text(path.read_text().replace(",validation,25", ",train,25"))
    read = load_dataset("folder", tmp_path)
    painted = load_dataset("synthetic-strips", None, options=TINY)
    assert read.classes == painted.classes
    assert read.train.mpp == painted.train.mpp
    assert sorted(read.train.names) == sorted(painted.validation.names[:10])
    for part, name in ((read.train, "25_3"), (read.validation, "27_7")):
        ours, theirs = part.names.index(name), painted.validation.names.index(name)
        wanted = painted.validation
        np.testing.assert_array_equal(part.images[ours], wanted.images[theirs])
        np.testing.assert_array_equal(part.labels[ours], wanted.labels[theirs])
    with pytest.raises(ConfigError, match="holds images already"):
        paint_strips(tmp_path, TINY)


def test_strips_refuse_what_cannot_be_painted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.2 to 8, got 9\.0"):
        lay_cases("train", DatasetOptions(mpp=9.0))
    with pytest.raises(ConfigError, match="got 'val'"):
        lay_cases("val", TINY)
    with pytest.raises(ConfigError, match="no split to write"):
        paint_strips(tmp_path, TINY, splits=())


# ---------------------------------------------------------------- pca-histo


@pytest.mark.parametrize(
    ("size_px", "nodes"),
    [
        ((2000, 5775), (80, 231)),
        ((2000, 11505), (80, 460)),
        ((2000, 20440), (80, 817)),
        ((229, 7771), (25, 863)),
        ((20440, 2000), (817, 80)),
        ((60, 500), (60, 500)),
    ],
)
def test_the_budget_rule_gives_the_nodes_of_the_released_code(
    size_px: tuple[int, int], nodes: tuple[int, int]
) -> None:
    assert strip_nodes(size_px) == nodes


def test_ids_on_disk_start_at_1_and_0_is_no_label(tmp_path: Path) -> None:
    mini = mini_pca_histo(tmp_path)
    options = DatasetOptions(split="paper")
    data = load_dataset("pca-histo", tmp_path, options=options)
    assert np.unique(data.train.labels[0]).tolist() == [0, 1, 2, 3, 4, 5]
    save(mini.mask, bands(32, 160, [0, 6]))
    data = load_dataset("pca-histo", tmp_path, options=options)
    assert np.unique(data.train.labels[0]).tolist() == [5, 255]
    save(mini.mask, bands(32, 160, [0, 7]))
    data = load_dataset("pca-histo", tmp_path, options=options)
    with pytest.raises(ConfigError, match=r"301_0\.png: unknown values \[7\]"):
        data.train.labels[0]


def test_the_default_split_keeps_cases_apart_and_the_paper_s_does_not(
    tmp_path: Path,
) -> None:
    mini_pca_histo(tmp_path)
    ours = load_dataset("pca-histo", tmp_path)
    assert ours.cases_disjoint
    assert ours.test is not None
    names = [*ours.train.names, *ours.validation.names, *ours.test.names]
    assert sorted(names) == [
        f"{case}_{n}" for case in range(301, 307) for n in range(3)
    ]
    options = DatasetOptions(split="paper")
    paper = load_dataset("pca-histo", tmp_path, options=options)
    assert not paper.cases_disjoint
    assert paper.train.names == tuple(f"{case}_0" for case in range(301, 307))
    assert set(paper.train.groups) == set(paper.validation.groups)
    with pytest.raises(ConfigError, match="got 'random'"):
        load_dataset("pca-histo", tmp_path, options=DatasetOptions(split="random"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            '"width": 160',
            '"width": 161',
            r"301_0\.png: is 160 x 32 px, but .* 161 x 32",
        ),
        ('"width": 160', '"width": "a"', "line 1: expected fpath_img"),
        ("{", "", "line 1: no JSON"),
        ("301_0.png", "gone_0.png", r"gone_0\.png: no such file"),
        ("301_0.png", "301.png", "expected a name <case>_<strip>"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    old: str, new: str, told: str, tmp_path: Path
) -> None:
    mini = mini_pca_histo(tmp_path)
    save(mini.image.with_name("301.png"), tissue_like(160, 32))
    path = tmp_path / "full_train_list_6.odgt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=told):
        load_dataset("pca-histo", tmp_path)


def test_missing_empty_and_double_lists_are_refused(tmp_path: Path) -> None:
    mini_pca_histo(tmp_path)
    path = tmp_path / "full_val_list_6.odgt"
    write(tmp_path / "full_val_list_27.odgt", [])
    with pytest.raises(ConfigError, match=r"full_val_list_\*.*got 2"):
        load_dataset("pca-histo", tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"full_val_list_27\.odgt: lists no image"):
        load_dataset("pca-histo", tmp_path)
    (tmp_path / "full_val_list_27.odgt").unlink()
    with pytest.raises(ConfigError, match="got 0"):
        load_dataset("pca-histo", tmp_path)


# ---------------------------------------------------------------- slides

REGIONS = DatasetOptions(region_px=128)


def test_slides_are_read_at_the_wanted_scale(tmp_path: Path) -> None:
    mini = mini_slides(tmp_path)
    data = load_dataset("slides", tmp_path, options=REGIONS)
    # the slide is 256 um wide and drawn on its left half: one region of 128 um
    assert data.train.names == ("s1-0-0",)
    assert (data.train.mpp, data.frame_px) == (1.0, (128, 128))
    with Image.open(mini.image) as image:
        pixels = np.asarray(image)[:256, :256].astype(float)
    mean = pixels.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    # halved by area; Pillow rounds between its two passes
    assert np.abs(data.train.images[0] - mean).max() <= 1


def test_drawn_areas_become_classes_and_children_win(tmp_path: Path) -> None:
    mini_slides(tmp_path)
    data = load_dataset("slides", tmp_path, options=REGIONS)
    wanted = np.zeros((128, 128), np.uint8)
    wanted[32:64, 32:64] = 1
    np.testing.assert_array_equal(data.train.labels[0], wanted)


def test_what_nobody_drew_is_no_label(tmp_path: Path) -> None:
    mini_slides(tmp_path)
    drawn = {
        "type": "FeatureCollection",
        "features": [polygon(0, 0, 100, 50, "Stroma")],
    }
    write(tmp_path / "annotations" / "s1.geojson", [json.dumps(drawn)])
    labels = load_dataset("slides", tmp_path, options=REGIONS).train.labels[0]
    assert (labels == 0).sum() == 50 * 25
    assert (labels == 255).sum() == 128 * 128 - 50 * 25


def test_label_images_cover_the_whole_slide(tmp_path: Path) -> None:
    mini_slides(tmp_path)
    test = load_dataset("slides", tmp_path, options=REGIONS).test
    assert test is not None
    # the right half of the label image is 255: one region is left out
    assert test.names == ("s3-0-0",)
    np.testing.assert_array_equal(test.labels[0], bands(128, 128, [0, 1]))


def test_regions_that_hang_over_the_edge_are_no_label_there(tmp_path: Path) -> None:
    mini_slides(tmp_path)
    options = DatasetOptions(region_px=200)
    test = load_dataset("slides", tmp_path, options=options).test
    assert test is not None
    labels = test.labels[0]
    assert (labels[:128, :128] != 255).all()
    assert (labels[128:] == 255).all()


def test_slides_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    mini = mini_slides(tmp_path)
    geojson = mini.mask.read_text()
    mini.mask.write_text(geojson.replace("Tumour", "Tumor"))
    with pytest.raises(ConfigError, match=r"s1\.geojson: .*unknown classes: 'Tumor'"):
        load_dataset("slides", tmp_path, options=REGIONS)
    mini.mask.write_text(json.dumps({"type": "FeatureCollection", "features": []}))
    with pytest.raises(ConfigError, match=r"s1\.geojson: no area with a class"):
        load_dataset("slides", tmp_path, options=REGIONS)
    mini.mask.write_text(geojson)
    save(tmp_path / "annotations" / "s3.png", bands(64, 64, [3, 7]))
    with pytest.raises(ConfigError, match=r"s3\.png: is 64 x 64 px and the slide"):
        load_dataset("slides", tmp_path, options=REGIONS)
    save(tmp_path / "annotations" / "s3.png", bands(64, 128, [3, 8]))
    with pytest.raises(ConfigError, match=r"s3\.png: unknown values \[8\]"):
        load_dataset("slides", tmp_path, options=REGIONS)
    save(tmp_path / "annotations" / "s1.png", bands(64, 128, [3]))
    with pytest.raises(ConfigError, match="slide 's1' has two files"):
        load_dataset("slides", tmp_path, options=REGIONS)


def test_slides_refuse_a_scale_finer_than_their_own(tmp_path: Path) -> None:
    mini_slides(tmp_path)
    options = DatasetOptions(region_px=128, mpp=0.25)
    with pytest.raises(ConfigError, match=r"s1\.tif: has 0\.5 um/px; 0\.25"):
        load_dataset("slides", tmp_path, options=options)


def test_a_missing_slide_is_refused(tmp_path: Path) -> None:
    mini = mini_slides(tmp_path)
    mini.image.unlink()
    with pytest.raises(
        ConfigError, match=r"slides/s1\.\*: expected one slide .* got 0"
    ):
        load_dataset("slides", tmp_path, options=REGIONS)


def test_slides_need_annotations_and_one_slide_each(tmp_path: Path) -> None:
    mini = mini_slides(tmp_path)
    copy = mini.image.with_suffix(".tiff")
    copy.write_bytes(mini.image.read_bytes())
    with pytest.raises(ConfigError, match=r"s1\.\*: expected one slide .* got 2"):
        load_dataset("slides", tmp_path, options=REGIONS)
    for path in (tmp_path / "annotations").iterdir():
        path.unlink()
    (tmp_path / "annotations" / "notes.txt").write_text("s1 is odd")
    with pytest.raises(
        ConfigError, match=r"annotations: no annotations; expected \.geo"
    ):
        load_dataset("slides", tmp_path, options=REGIONS)
    (tmp_path / "annotations" / "notes.txt").unlink()
    (tmp_path / "annotations").rmdir()
    with pytest.raises(ConfigError, match="annotations: no such folder"):
        load_dataset("slides", tmp_path, options=REGIONS)


def test_a_coarser_level_is_read_where_it_is_fine_enough(tmp_path: Path) -> None:
    mini = mini_slides(tmp_path)
    half_um = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    flat = np.full((256, 512, 3), (200, 120, 160), np.uint8)
    with tifffile.TiffWriter(mini.image) as file:
        for number, step in enumerate((1, 2)):
            # another colour tells which level was read
            file.write(
                np.ascontiguousarray(flat[::step, ::step]) - np.uint8(20 * number),
                tile=(128, 128),
                photometric="rgb",
                metadata=None,
                subfiletype=number,
                **half_um,
            )
    train = load_dataset("slides", tmp_path, options=REGIONS).train
    assert train.images[0][:, 64, 64].tolist() == [180, 100, 140]
    fine = DatasetOptions(region_px=128, mpp=0.5)
    train = load_dataset("slides", tmp_path, options=fine).train
    assert train.images[0][:, 64, 64].tolist() == [200, 120, 160]


def test_a_region_beside_all_areas_is_no_label() -> None:
    drawn = Areas(np.array([shapely.box(0, 0, 10, 10)]), np.ones(1, np.uint8))
    assert (label_region(drawn, (99, 99), Box(20, 0, 8, 8), 4) == 255).all()
    assert (label_region(drawn, (99, 99), Box(0, 0, 8, 8), 4) == 1).all()


XML = """<ASAP_Annotations><Annotations>
<Annotation Name="a" Type="Polygon" PartOfGroup="Ca"><Coordinates>
<Coordinate Order="0" X="64" Y="64"/><Coordinate Order="1" X="128" Y="64"/>
<Coordinate Order="2" X="128" Y="128"/><Coordinate Order="3" X="64" Y="128"/>
</Coordinates></Annotation></Annotations></ASAP_Annotations>"""


def test_annotations_of_other_programs_go_by_the_class_map(tmp_path: Path) -> None:
    mini = mini_slides(tmp_path)
    mini.mask.unlink()
    write(tmp_path / "annotations" / "s1.xml", [XML])
    with pytest.raises(ConfigError, match=r"s1\.xml: .*'Ca'.*class_map\.csv"):
        load_dataset("slides", tmp_path, options=REGIONS)
    write(tmp_path / "class_map.csv", ["drawn,class", "Ca,Tumour"])
    labels = load_dataset("slides", tmp_path, options=REGIONS).train.labels[0]
    wanted = np.full((128, 128), 255, np.uint8)
    wanted[32:64, 32:64] = 1
    np.testing.assert_array_equal(labels, wanted)


def test_a_frame_that_is_none_is_refused(tmp_path: Path) -> None:
    mini_slides(tmp_path)
    write(tmp_path / "frame.txt", ["qupth"])
    with pytest.raises(ConfigError, match=r"frame\.txt: frame 'qupth': expected one"):
        load_dataset("slides", tmp_path, options=REGIONS)
