"""Tables of slide-level labels: what is read, how rows are dealt, what is refused."""

from pathlib import Path

import numpy as np
import pytest

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.training.label_table import LabelTable, deal_rows, read_labels

KNOWN = ("slide", "features")


@pytest.fixture
def sheet(tmp_path: Path):
    def write(*lines: str) -> Path:
        path = tmp_path / "sheet.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def read(path: Path, *tasks: str) -> LabelTable:
    return read_labels(path, "sample", KNOWN, tasks)


def test_every_other_column_is_a_label_and_empty_is_unknown(sheet) -> None:
    path = sheet(
        "sample,slide,cancer,gland,group,split",
        "a, a.svs,1,,p1,train",
        ",,,,,",
        "b,b.svs,0,1,p2,val",
        "c,c.svs,,,p2,val",
    )
    table = read(path)
    assert table.tasks == ("cancer", "gland")
    assert [row.name for row in table.rows] == ["a", "b"]  # nothing is known of c
    labels = np.stack([row.labels for row in table.rows])
    np.testing.assert_array_equal(labels, [[1, np.nan], [0, 1]])
    assert labels.dtype == np.float32
    assert table.rows[0].cells["slide"] == "a.svs"
    assert table.rows[1].where == f"{path}, line 4"


def test_some_columns_only_may_be_labels(sheet) -> None:
    table = read(sheet("sample,age,cancer", "a,61,1", "b,70,0"), "cancer")
    assert table.tasks == ("cancer",)


def test_a_byte_order_mark_and_quotes_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    path.write_bytes(b'\xef\xbb\xbfsample,"cancer"\r\n"a",1\r\n')
    assert read(path).rows[0].labels.tolist() == [1.0]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["sample,cancer", "a,yes"], "line 2: label 'cancer' is 'yes', expected 1, 0"),
        (["sample,cancer", "", "a,0.5"], "line 3: .*--task"),
        (["sample,cancer", "a,1", "a,0"], "line 3: sample 'a' is there twice"),
        (["sample,cancer", ",1"], "line 2: sample '' is empty"),
        (["sample,cancer", "a"], "line 2: 1 cells, the header has 2"),
        (["sample,cancer", "a,1,0"], "line 2: 3 cells"),
        (["slide,cancer", "a,1"], "no column 'sample'; there are slide, cancer"),
        (["sample,slide", "a,a.svs"], "no label column at all; there are sample"),
        (["sample,cancer,cancer", "a,1,1"], "column 'cancer' is there twice"),
        ([""], "no column 'sample'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(sheet, lines, words) -> None:
    with pytest.raises(ConfigError, match=rf"sheet\.csv.*{words}"):
        read(sheet(*lines))


def test_a_wrong_task_lists_the_columns(sheet) -> None:
    with pytest.raises(ConfigError, match="no label column gland; there are sample"):
        read(sheet("sample,cancer", "a,1"), "cancer", "gland")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content) -> None:
    path = tmp_path / "sheet.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"sheet\.csv: (no such|cannot be read)"):
        read(path)


def table_of(sheet, groups: list[str], labels: str, splits: list[str]) -> LabelTable:
    rows = [
        f"s{n},{label},{group},{split}"
        for n, (label, group, split) in enumerate(
            zip(labels, groups, splits, strict=True)
        )
    ]
    return read(sheet("sample,cancer,group,split", *rows))


def test_stated_splits_are_kept_and_test_is_left_out(sheet) -> None:
    splits = ["train", "val", "test", "train", "validation"]
    table = table_of(sheet, [""] * 5, "10101", splits)
    assert deal_rows(table, 0) == ([0, 3], [1, 4], "Split as the table states.")


def test_a_group_that_is_torn_is_said(sheet) -> None:
    splits = ["train", "train", "val", "val"]
    *_, note = deal_rows(table_of(sheet, ["p", "q", "q", "r"], "1010", splits), 0)
    assert "1 groups are in training and in validation" in note


def test_unstated_splits_keep_groups_whole_and_follow_the_seed(sheet) -> None:
    groups = [f"p{n // 3}" for n in range(60)]
    table = table_of(sheet, groups, "10" * 30, [""] * 60)
    dealt = [deal_rows(table, seed) for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1]
    assert dealt[0] != dealt[2]
    train, validation, note = dealt[0]
    assert sorted(train + validation) == list(range(60))
    assert not {groups[n] for n in train} & {groups[n] for n in validation}
    assert 6 <= len(validation) <= 18
    assert note == "Split by the hash of the group, seed 0."


def test_without_groups_the_note_says_what_may_be(sheet) -> None:
    *_, note = deal_rows(table_of(sheet, [""] * 20, "10" * 10, [""] * 20), 0)
    assert "one patient may be in both" in note


@pytest.mark.parametrize(
    ("labels", "splits", "words"),
    [
        ("1110", ["train"] * 3 + ["val"], "0 slides of label 0 and 3 of label 1"),
        ("1010", ["train"] * 4, "no labelled row in split 'val'"),
        ("1010", ["val"] * 4, "no labelled row in split 'train'"),
        ("1010", ["train", "train", "val", ""], "line 5: split is ''"),
        ("1010", ["train", "train", "val", "x"], "line 5: split is 'x'.*train, val"),
    ],
)
def test_splits_that_nothing_can_be_learned_from_are_refused(
    sheet, labels, splits, words
) -> None:
    with pytest.raises(ConfigError, match=words):
        deal_rows(table_of(sheet, [""] * 4, labels, splits), 0)
