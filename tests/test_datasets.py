"""Labelled datasets: every row on its miniature, and what no row may let through."""

import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.dataset_minis import (
    FILE_MINIS,
    bands,
    mini_folder,
    mini_glas,
    save,
)
from wsi_pipeline.classes import MaskClass
from wsi_pipeline.errors import ConfigError, UnknownNameError
from wsi_pipeline.training.data import LabelledImages
from wsi_pipeline.training.datasets import (
    DATASETS,
    DatasetOptions,
    SegmentData,
    load_dataset,
    load_glas,
    paint_images,
)
from wsi_pipeline.training.datasets.codes import ColourCodes, IndexCodes
from wsi_pipeline.training.datasets.files import (
    LabelledFile,
    dataset_folder,
    find_pictures,
    label_files,
    read_colours,
    read_index,
)
from wsi_pipeline.training.datasets.ondemand import OnDemand
from wsi_pipeline.training.datasets.record import UNLABELLED
from wsi_pipeline.training.datasets.splits import split_groups
from wsi_pipeline.training.datasets.tables import read_table

SMALL = DatasetOptions(region_px=64)
PATH = Path("mask.png")


def parts(data: SegmentData) -> list[LabelledImages]:
    return [one for one in (data.train, data.validation, data.test) if one is not None]


def square(group: str = "a", count: int = 1) -> LabelledImages:
    images = tuple(np.zeros((3, 4, 4), np.uint8) for _ in range(count))
    labels = tuple(np.zeros((4, 4), np.uint8) for _ in range(count))
    return LabelledImages(images, labels, ("n",) * count, (group,) * count, 1.0)


def record(**changes: object) -> SegmentData:
    facts: dict[str, object] = {
        "name": "test",
        "classes": (MaskClass(0, "A", (0, 0, 0)), MaskClass(1, "B", (9, 9, 9))),
        "train": square("a"),
        "validation": square("b"),
        "test": None,
        "frame_px": None,
        "budgets": (),
        "cases_disjoint": True,
        "licence": "",
        "note": "",
    }
    return SegmentData(**(facts | changes))


# ---------------------------------------------------------------- every row


@pytest.mark.parametrize("name", FILE_MINIS)
def test_every_row_decodes_its_miniature(name: str, tmp_path: Path) -> None:
    FILE_MINIS[name](tmp_path)
    data = load_dataset(name, tmp_path, options=SMALL)
    assert data.name == name
    assert data.licence
    assert data.note or name == "glas"
    for part in parts(data):
        assert len(part) == len(part.names) == len(part.groups) == len(part.labels)
        assert len(set(part.names)) == len(part.names)
        image, label = part.images[0], part.labels[0]
        assert image.dtype == label.dtype == np.uint8
        assert image.shape == (3, *label.shape)
        assert data.frame_px in (None, label.shape)
        assert image.flags.c_contiguous
        assert image.flags.writeable
        assert set(np.unique(label)) <= {*range(len(data.classes)), UNLABELLED}


def test_every_row_of_the_table_has_a_miniature_or_is_painted() -> None:
    painted = {"synthetic", "synthetic-strips"}
    assert set(DATASETS.names()) == set(FILE_MINIS) | painted


@pytest.mark.parametrize("name", FILE_MINIS)
def test_no_case_is_in_two_splits_where_rows_say_so(name: str, tmp_path: Path) -> None:
    FILE_MINIS[name](tmp_path)
    data = load_dataset(name, tmp_path, options=SMALL)
    groups = [set(part.groups) for part in parts(data)]
    shared = sum(map(len, groups)) - len(set().union(*groups))
    assert shared == 0 or not data.cases_disjoint


@pytest.mark.parametrize("name", FILE_MINIS)
def test_a_missing_mask_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    mini = FILE_MINIS[name](tmp_path)
    mini.mask.unlink()
    if name == "panda":  # some hundred images have none
        assert "3 listed images have no mask" in load_dataset(name, tmp_path).note
        return
    stem = "s1" if name == "slides" else mini.mask.stem.split("_gtFine")[0]
    with pytest.raises(ConfigError, match=stem):
        load_dataset(name, tmp_path, options=SMALL)


@pytest.mark.parametrize("name", FILE_MINIS)
def test_an_unreadable_image_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    mini = FILE_MINIS[name](tmp_path)
    mini.image.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ConfigError, match=mini.image.name):
        load_dataset(name, tmp_path, options=SMALL)


@pytest.mark.parametrize("name", FILE_MINIS)
def test_an_unreadable_mask_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    mini = FILE_MINIS[name](tmp_path)
    mini.mask.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=mini.mask.name):
        read_all(load_dataset(name, tmp_path, options=SMALL))


@pytest.mark.parametrize("name", sorted(set(FILE_MINIS) - {"panda", "slides"}))
def test_a_mask_of_another_size_is_refused_with_both_sizes(
    name: str, tmp_path: Path
) -> None:
    mini = FILE_MINIS[name](tmp_path)
    save(mini.mask, np.zeros((21, 22), np.uint8))
    with pytest.raises(ConfigError, match=f"{mini.mask.name}.*22 x 21"):
        load_dataset(name, tmp_path)


@pytest.mark.parametrize("name", FILE_MINIS)
def test_a_folder_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a"):
        load_dataset(name, None)
    with pytest.raises(ConfigError, match="nowhere"):
        load_dataset(name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", DATASETS.names())
def test_unknown_classes_are_refused(name: str, tmp_path: Path) -> None:
    if name in FILE_MINIS:
        FILE_MINIS[name](tmp_path)
    with pytest.raises(ConfigError, match="class"):
        load_dataset(name, tmp_path, classes="no such")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="synthetic-strips"):
        load_dataset("kvasir", None)


def read_all(data: SegmentData) -> None:
    for part in parts(data):
        for n in range(len(part)):
            assert part.images[n].shape[1:] == part.labels[n].shape


# ---------------------------------------------------------------- the record


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="'validation' is empty"):
        record(validation=square(count=0))


def test_a_case_in_two_splits_is_refused_where_none_is_promised() -> None:
    with pytest.raises(ConfigError, match="'a' is in 'train' and in 'validation'"):
        record(validation=square("a"))
    assert record(validation=square("a"), cases_disjoint=False).train.groups == ("a",)


def test_class_values_must_be_channels() -> None:
    with pytest.raises(ConfigError, match=r"0, 1, \.\.\., got \[1\]"):
        record(classes=(MaskClass(1, "B", (9, 9, 9)),))


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0},
        {"mpp": 0.0},
        {"mpp": float("nan")},
        {"scale": 1.5},
        {"level": -1},
        {"region_px": 8},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DatasetOptions(**wrong)


# ---------------------------------------------------------------- on demand


class Counting:
    """Makes an array of n and remembers what was asked for."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, row: int) -> NDArray[np.uint8]:
        self.made.append(row)
        return np.full(2, row, np.uint8)


def test_only_the_last_few_values_are_kept() -> None:
    make = Counting()
    some = OnDemand(5, make, keep=2)
    for row in (0, 1, 0, 2, 0, 1):
        assert some[row][0] == row
    # 0 was used last before 2 came, so 1 had to go
    assert make.made == [0, 1, 2, 1]


def test_nothing_is_kept_where_nothing_shall_be() -> None:
    make = Counting()
    some = OnDemand(3, make, keep=0)
    assert [int(some[1][0]), int(some[1][0])] == [1, 1]
    assert make.made == [1, 1]


def test_a_sequence_on_demand_is_a_sequence() -> None:
    make = Counting()
    some = OnDemand(4, make)
    assert some[-1][0] == 3
    assert [int(one[0]) for one in some] == [0, 1, 2, 3]
    assert [int(one[0]) for one in some[1::2]] == [1, 3]
    with pytest.raises(IndexError):
        some[4]


def test_a_dataset_travels_to_a_worker(tmp_path: Path) -> None:
    mini_folder(tmp_path)
    train = load_dataset("folder", tmp_path).train
    before = train.images[0]
    after = pickle.loads(pickle.dumps(train)).images[0]  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(before, after)


# ---------------------------------------------------------------- files


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    one = LabelledFile(image, image, "a", "g")
    with pytest.raises(ConfigError, match=r"a\.png: the name 'a' is there twice"):
        label_files([one, one], IndexCodes(((0, 0),)), 1.0)


def test_colours_and_values_are_not_mixed_up(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ConfigError, match=r"grey\.png: expected colours, got mode L"):
        read_colours(grey)
    colours = save(tmp_path / "colours.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"colours\.png: expected one value"):
        read_index(colours)


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    wanted = save(tmp_path / "a.PNG", np.zeros((4, 4), np.uint8))
    save(tmp_path / "._a.png", np.zeros((4, 4), np.uint8))
    assert find_pictures(tmp_path) == [wanted]
    with pytest.raises(ConfigError, match="gone: no such folder"):
        find_pictures(tmp_path / "gone")


def test_a_set_below_the_data_folder_comes_first(tmp_path: Path) -> None:
    assert dataset_folder(tmp_path, "camvid") == tmp_path
    below = tmp_path / "labelled" / "camvid"
    below.mkdir(parents=True)
    assert dataset_folder(tmp_path, "camvid") == below


# ---------------------------------------------------------------- codes


def test_index_codes_map_every_known_value() -> None:
    codes = IndexCodes(((0, 255), (3, 0), (9, 1)))
    stored = np.array([[0, 3], [9, 3]], np.uint16)
    assert codes.decode(stored, PATH).tolist() == [[255, 0], [1, 0]]


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (np.array([[3, 4, 5]], np.uint8), r"unknown values \[4, 5\]; expected \[3\]"),
        (np.array([[3, 259]], np.int32), "0 to 255, got 3 to 259"),
        (np.array([[3, -1]], np.int32), "0 to 255, got -1 to 3"),
        (np.zeros((2, 2, 3), np.uint8), "one value per pixel"),
    ],
)
def test_index_codes_refuse_the_rest(stored: NDArray[np.uint8], told: str) -> None:
    with pytest.raises(ConfigError, match=f"mask.png: .*{told}"):
        IndexCodes(((3, 0),)).decode(stored, PATH)


def test_colour_codes_map_every_known_colour() -> None:
    codes = ColourCodes((((9, 0, 0), 1), ((0, 0, 9), 0), ((0, 9, 0), 255)))
    stored = np.array([[[0, 0, 9], [9, 0, 0], [0, 9, 0]]], np.uint8)
    assert codes.decode(stored, PATH).tolist() == [[0, 1, 255]]


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_a_threshold_rounds_each_channel(r: int, g: int, b: int) -> None:
    corners = [(x, y, z) for x in (0, 255) for y in (0, 255) for z in (0, 255)]
    codes = ColourCodes(tuple((rgb, n) for n, rgb in enumerate(corners)), threshold=128)
    got = codes.decode(np.array([[[r, g, b]]], np.uint8), PATH)
    assert got[0, 0] == 4 * (r >= 128) + 2 * (g >= 128) + (b >= 128)


def test_colour_codes_refuse_the_rest() -> None:
    codes = ColourCodes((((9, 0, 0), 1),))
    with pytest.raises(ConfigError, match=r"mask.png: unknown colours \(8, 0, 0\)"):
        codes.decode(np.array([[[8, 0, 0], [9, 0, 0]]], np.uint8), PATH)
    with pytest.raises(ConfigError, match=r"mask\.png: expected RGB"):
        codes.decode(np.zeros((2, 2), np.uint8), PATH)


# ---------------------------------------------------------------- splits

GROUPS = st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=60).filter(
    lambda groups: len(set(groups)) >= 3
)


@given(GROUPS, st.integers(0, 9))
def test_groups_never_straddle_and_no_row_is_lost(groups: list[str], seed: int) -> None:
    dealt = split_groups(groups, seed=seed)
    assert sorted(row for part in dealt for row in part) == list(range(len(groups)))
    assert all(dealt)
    owners = [{groups[row] for row in part} for part in dealt]
    assert sum(map(len, owners)) == len(set(groups))


@given(GROUPS, st.randoms())
def test_a_split_depends_on_names_not_on_order(
    groups: list[str], random: "st.Random"
) -> None:
    def owners(rows: list[str]) -> list[set[str]]:
        return [{rows[row] for row in part} for part in split_groups(rows)]

    shuffled = list(groups)
    random.shuffle(shuffled)
    assert owners(groups) == owners(shuffled)


def test_shares_are_met_as_far_as_groups_allow() -> None:
    groups = [f"p{n % 100}" for n in range(1000)]
    sizes = [len(part) for part in split_groups(groups, (0.7, 0.2, 0.1))]
    assert sizes == [700, 200, 100]


def test_another_seed_is_another_split() -> None:
    groups = [f"p{n}" for n in range(40)]
    assert split_groups(groups, seed=0) != split_groups(groups, seed=1)
    assert split_groups(groups, seed=1) == split_groups(groups, seed=1)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"strips: 3 splits need 3 groups.*got 2: "):
        split_groups(["a", "b", "a"], what="strips")


# ---------------------------------------------------------------- tables


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("﻿b,a,c\n1, 2 ,3\n\n4,5,6\n", encoding="utf-8")
    assert read_table(path, ("a", "b"), ("z", "c")) == [
        ("2", "1", "", "3"),
        ("5", "4", "", "6"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "is empty"),
        (b"a,b\n", "no rows"),
        (b"b,c\n1,2\n", "no column a; there are b, c"),
        (b"b,a\n1\n", "row 2 has only 1 cells"),
        (b"a\n\xff\xfe\n", "cannot be read as CSV"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    text: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"t\.csv: .*{told}"):
        read_table(path, ("a",))


def test_excel_without_its_reader_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    path = tmp_path / "Train.xlsx"
    with pytest.raises(ConfigError, match="no such file"):
        read_table(path, ("a",))
    path.write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"Train\.xlsx.*openpyxl.*Train\.csv"):
        read_table(path, ("a",))


class FakeBook:
    """What openpyxl gives of a sheet of two rows."""

    def __init__(self, path: Path, **options: bool) -> None:
        if path.read_bytes() != b"PK":
            raise KeyError("no item named '[Content_Types].xml'")
        self.worksheets = [self]

    def iter_rows(self, values_only: bool) -> list[tuple[object, ...]]:
        return [("a", "b"), (1, None)]

    def close(self) -> None: ...


def test_excel_is_read_by_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = SimpleNamespace(load_workbook=FakeBook)
    monkeypatch.setitem(sys.modules, "openpyxl", reader)
    path = tmp_path / "Train.xlsx"
    path.write_bytes(b"PK")
    assert read_table(path, ("b", "a")) == [("", "1")]
    path.write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"Train\.xlsx: cannot be read as Excel"):
        read_table(path, ("a",))


# ---------------------------------------------------------------- glas, painted


def test_glas_is_split_by_patient_and_glands_can_be_merged(tmp_path: Path) -> None:
    mini_glas(tmp_path)
    data = load_dataset("glas", tmp_path)
    assert data.train.groups == ("1", "1", "2")
    assert data.validation.names == ("i_3",)
    assert data.train.mpp == 0.62
    assert np.unique(data.train.labels[0]).tolist() == [0, 1, 2]
    binary = load_dataset("glas", tmp_path, classes="binary")
    assert [kind.name for kind in binary.classes] == ["Background", "Gland"]
    np.testing.assert_array_equal(
        binary.train.labels[0], data.train.labels[0].clip(max=1)
    )


def test_glas_refuses_splits_and_values_that_it_does_not_know(tmp_path: Path) -> None:
    mini = mini_glas(tmp_path)
    with pytest.raises(ConfigError, match=r"no GlaS data there \(no file split\.csv"):
        load_glas(tmp_path / "labelled", "train")
    with pytest.raises(ConfigError, match="no image in split 'test'"):
        load_glas(tmp_path, "test")
    save(mini.mask, bands(40, 60, [0, 1, 7]))
    with pytest.raises(ConfigError, match=r"i_0\.png: unknown values \[7\]"):
        load_glas(tmp_path, "train").labels[0]


def test_glas_of_the_data_folder_is_whole(data_dir: Path) -> None:
    if not (data_dir / "labelled" / "glas").is_dir():
        pytest.skip("real data absent: no labelled/glas")
    data = load_dataset("glas", data_dir)
    assert (len(data.train), len(data.validation)) == (101, 25)
    assert data.validation.images[3].shape[1:] == data.validation.labels[3].shape


def test_painted_images_are_as_many_as_asked_for() -> None:
    data = load_dataset("synthetic", None, images=1)
    assert (len(data.train), len(data.validation)) == (1, 1)
    assert data.train.images[0].shape == (3, 1024, 1024)
    assert data.train.names == ("synthetic-10000",)
    again = paint_images([10_000], 1024, 1.0)
    np.testing.assert_array_equal(again.labels[0], data.train.labels[0])
