"""Files, folders and patterns become one row per file, with ids that never meet."""

import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.errors import SlideError
from wsi_pipeline.readers.dicom import DicomFacts, read_dicom_facts
from wsi_pipeline.readers.discovery import Candidate, find_slides, slide_id


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def rows(found: list[Candidate], root: Path) -> list[tuple[str, str, str]]:
    return [(r.path.relative_to(root).as_posix(), r.kind, r.reason) for r in found]


def test_a_folder_is_searched_to_the_bottom_in_order(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.svs",
        "a/z.TIFF",
        "a/deep/er/c.ndpi",
        "notes.txt",
        "README",
        "p.png",
        ".hidden.svs",
        ".staging/x/half.svs",
        "out.zarr/0/c/0",
    )
    (tmp_path / "empty").mkdir()
    found = find_slides([tmp_path])
    assert rows(found, tmp_path) == [
        ("README", "skip", "not a slide format (no extension)"),
        ("a/deep/er/c.ndpi", "slide", ""),
        ("a/z.TIFF", "slide", ""),
        ("b.svs", "slide", ""),
        ("notes.txt", "skip", "not a slide format (.txt)"),
        ("out.zarr", "skip", "an OME-Zarr, not a slide file"),
        ("p.png", "skip", "not a slide format (.png)"),
    ]
    assert {r.root for r in found} == {tmp_path}


def test_files_named_one_by_one_have_their_folder_as_root(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.svs", "b/2.svs")
    found = find_slides([tmp_path / "b/2.svs", tmp_path / "a/1.svs"])
    assert [(r.path.name, r.root.name) for r in found] == [
        ("2.svs", "b"),
        ("1.svs", "a"),
    ]


def test_a_pattern_that_the_shell_left_alone(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.svs", "a/2.tif", "b/1.svs", "b/c/3.svs", "b/d[1].svs")
    found = find_slides([tmp_path / "*" / "*.svs"])
    assert [n for n, _, _ in rows(found, tmp_path)] == [
        "a/1.svs",
        "b/1.svs",
        "b/d[1].svs",
    ]
    assert {r.root for r in found} == {tmp_path}
    assert len({slide_id(r) for r in found}) == 3
    found = find_slides([tmp_path / "**" / "*.svs"])
    assert len(found) == 4
    found = find_slides([tmp_path / "b" / "d[1].svs"])
    assert rows(found, tmp_path) == [("b/d[1].svs", "slide", "")]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"none\.svs: not found; check the path /"):
        find_slides([tmp_path / "none.svs"])
    with pytest.raises(SlideError, match=r"\*\.svs: no file matches this pattern"):
        find_slides([tmp_path / "*.svs"])


def test_a_file_reached_twice_is_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a/1.svs")
    monkeypatch.chdir(tmp_path)
    found = find_slides([tmp_path, Path("a/1.svs"), Path("a/../a"), Path("a/*.svs")])
    assert rows(found, tmp_path) == [("a/1.svs", "slide", "")]


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "real/1.svs")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "real/2.svs").symlink_to(tmp_path / "real/1.svs")
    (tmp_path / "real/gone.svs").symlink_to(tmp_path / "nowhere.svs")
    (tmp_path / "view").symlink_to(tmp_path / "real")
    assert rows(find_slides([tmp_path]), tmp_path) == [
        ("real/1.svs", "slide", ""),
        ("real/2.svs", "skip", "the same file as 1.svs"),
        ("real/gone.svs", "slide", ""),
        ("view/1.svs", "skip", "the same file as 1.svs"),
        ("view/2.svs", "skip", "the same file as 1.svs"),
        ("view/gone.svs", "slide", ""),
    ]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.svs")
    assert rows(find_slides([tmp_path]), tmp_path) == [
        ("a.svs", "skip", "not a regular file")
    ]


def test_mirax_data_belong_to_their_slide(tmp_path: Path) -> None:
    touch(tmp_path, "X.mrxs", "X/Data0000.dat", "X/Slidedat.ini", "X/t.tif", "Y/Z.dat")
    assert rows(find_slides([tmp_path]), tmp_path) == [
        ("X/Data0000.dat", "skip", "part of X.mrxs"),
        ("X/Slidedat.ini", "skip", "part of X.mrxs"),
        ("X/t.tif", "skip", "part of X.mrxs"),
        ("X.mrxs", "slide", ""),
        ("Y/Z.dat", "skip", "not a slide format (.dat)"),
    ]


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    head = struct.pack("<HH", group, number) + kind
    if kind in (b"SQ", b"OB"):
        return head + struct.pack("<HI", 0, 0xFFFFFFFF) + value
    return head + struct.pack("<H", len(value)) + value


def implicit(group: int, number: int, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HHI", group, number, len(value)) + value


END_SEQUENCE = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
END_ITEM = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)


def dicom(series: str, kind: str, columns: int, is_explicit: bool = True) -> bytes:
    syntax = b"1.2.840.10008.1.2.4.50" if is_explicit else b"1.2.840.10008.1.2"
    meta = element(2, 0x10, b"UI", syntax)
    width = struct.pack("<I", columns)
    if is_explicit:
        # a nested sequence that repeats the wanted tags, which must not be believed
        inner = element(8, 8, b"CS", b"WRONG") + element(
            8, 0x1115, b"SQ", ITEM + element(0x20, 0xE, b"UI", b"9") + END_ITEM
        )
        body = (
            element(8, 8, b"CS", f"ORIGINAL\\PRIMARY\\{kind}\\NONE".encode())
            + element(8, 0x1115, b"SQ", ITEM + inner + END_SEQUENCE + END_ITEM)
            + END_SEQUENCE
            + element(0x20, 0xE, b"UI", series.encode())
            + element(0x48, 6, b"UL", width)
        )
    else:
        body = (
            implicit(8, 8, f"DERIVED\\PRIMARY\\{kind}".encode())
            + implicit(0x20, 0xE, series.encode())
            + implicit(0x48, 6, width)
        )
    return bytes(128) + b"DICM" + meta + body + bytes(40)


@pytest.mark.parametrize("is_explicit", [True, False])
def test_dicom_headers_are_read_past_nested_sequences(
    tmp_path: Path, is_explicit: bool
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom("1.2.3", "VOLUME", 4321, is_explicit))
    assert read_dicom_facts(path) == DicomFacts("1.2.3", True, 4321)


@given(cut=st.integers(0, 330), noise=st.binary(max_size=40))
def test_damaged_dicom_headers_are_no_crash(
    tmp_path_factory: pytest.TempPathFactory, cut: int, noise: bytes
) -> None:
    path = tmp_path_factory.mktemp("d") / "a.dcm"
    path.write_bytes(dicom("1.2.3", "VOLUME", 4321)[:cut] + noise)
    facts = read_dicom_facts(path)
    assert facts is None or isinstance(facts, DicomFacts)


def test_a_dicom_slide_is_its_largest_level(tmp_path: Path) -> None:
    for name, series, kind, columns in [
        ("a.dcm", "1.1", "LABEL", 9000),
        ("b.dcm", "1.1", "VOLUME", 500),
        ("c", "1.1", "VOLUME", 2000),
        ("d.dcm", "1.2", "VOLUME", 300),
    ]:
        (tmp_path / name).write_bytes(dicom(series, kind, columns))
    touch(tmp_path, "e.dcm")
    part = "level or label of the DICOM slide c"
    assert rows(find_slides([tmp_path]), tmp_path) == [
        ("a.dcm", "skip", part),
        ("b.dcm", "skip", part),
        ("c", "slide", ""),
        ("d.dcm", "slide", ""),
        ("e.dcm", "slide", ""),
    ]


def test_the_real_folder_has_one_row_per_file(data_dir: Path) -> None:
    folder = data_dir / "slides"
    found = find_slides([folder])
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert sorted(r.path for r in found) == sorted(files)
    skipped = [r for r in found if r.kind == "skip"]
    reasons = [r.reason for r in skipped]
    assert sum("DICOM slide 1.2.826" in r for r in reasons) == 2
    assert sum(r == "part of Mirax2-Fluorescence-1.mrxs" for r in reasons) == 5
    assert sum(r == "not a slide format (.png)" for r in reasons) == 5
    assert len(skipped) == 12
    ids = [slide_id(r) for r in found if r.kind == "slide"]
    assert len(set(ids)) == len(ids) == len(files) - 12


def test_ids_depend_on_the_place_below_the_root_only(tmp_path: Path) -> None:
    for root in (tmp_path / "here", tmp_path / "there"):
        touch(root, "a/1.svs", "b/1.svs")
    here = [slide_id(r) for r in find_slides([tmp_path / "here"])]
    there = [slide_id(r) for r in find_slides([tmp_path / "there"])]
    assert here == there
    # sha256 of "a/1.svs" and "b/1.svs"
    assert here == ["1-815d6427", "1-70850b44"]


def test_equal_names_in_folders_named_one_by_one_get_different_ids(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "a/1.svs", "b/1.svs", "b/2.svs")
    found = find_slides([tmp_path / n for n in ("a/1.svs", "b/1.svs", "b/2.svs")])
    assert len({slide_id(r) for r in found}) == 3
    assert [r.root for r in found] == [tmp_path, tmp_path, tmp_path / "b"]


def test_unicode_twins_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "Pr\u00fcfling.svs", "Pru\u0308fling.svs")
    found = find_slides([tmp_path])
    assert [r.kind for r in found] == ["slide", "skip"]
    assert "Unicode spelling" in found[1].reason
    assert re.fullmatch(r"Prufling-[0-9a-f]{8}", slide_id(found[0]))


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=120))
def test_ids_are_safe_whatever_the_name(name: str) -> None:
    if name in (".", ".."):
        name += "x"
    found = slide_id(Candidate(Path("/r", name), Path("/r"), "slide"))
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{8}", found)
    assert len(found) <= 100


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("...svs", "slide"),
        ("\u4e2d\u6587.svs", "slide"),
        ("a b/$(x).svs", "x"),
        ("-rf.svs", "rf"),
        ("<img onerror=1>.svs", "img_onerror_1"),
        ("x" * 200 + ".svs", "x" * 91),
    ],
)
def test_ids_keep_what_is_plain(name: str, stem: str) -> None:
    found = slide_id(Candidate(Path("/r", name), Path("/r"), "slide"))
    assert found[:-9] == stem
