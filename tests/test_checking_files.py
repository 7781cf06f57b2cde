"""`wsi check-geojson`: files as a whole, mended copies, and what the verb says."""

import gzip
import json
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.annotations.checking import check_geojson
from wsi_pipeline.annotations.mending import copy_of, mend_geojson
from wsi_pipeline.annotations.qupath.streaming import Elements, NotJsonError
from wsi_pipeline.errors import RegionError

SQUARE = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}
OPEN = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9]]]}
GOOD = {"type": "Feature", "geometry": SQUARE, "properties": {"name": "Gewebe ü"}}
BAD = {"type": "Feature", "geometry": OPEN, "properties": {}}
LOST = {"type": "Feature", "geometry": None, "properties": {}}
ONE = json.dumps(GOOD).encode()


def collection(*rows: Any, **members: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(rows)} | members


def write(folder: Path, document: Any, name: str = "a.geojson") -> Path:
    path = folder / name
    plain = document if isinstance(document, bytes) else json.dumps(document).encode()
    path.write_bytes(gzip.compress(plain) if name.endswith(".gz") else plain)
    return path


def pack(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in files.items():
            packed.writestr(name.replace("__", "."), data)
    return path


def effects(path: Path) -> list[tuple[str, str]]:
    return [(found.effect, found.where) for found in check_geojson(path)]


@pytest.mark.parametrize("name", ["a.geojson", "A.JSON", "a.geojson.gz", "a.json.gz"])
@pytest.mark.parametrize(
    "document",
    [
        collection(GOOD),
        [GOOD],
        [GOOD, SQUARE, [GOOD], collection(GOOD)],
        GOOD,
        SQUARE,
        collection(),
        [],
        b"\xef\xbb\xbf" + ONE,
        b" \r\n\t" + ONE + b"\n\n",
    ],
)
def test_every_container_that_qupath_reads_passes(
    tmp_path: Path, document: Any, name: str
) -> None:
    path = write(tmp_path, document, name)
    assert check_geojson(path) == []
    assert mend_geojson(path).copy is None


@pytest.mark.parametrize(
    ("document", "where"),
    [
        (collection(GOOD, BAD), "feature 1"),
        ([GOOD, BAD], "feature 1"),
        ([GOOD, OPEN], "feature 1"),
        ([GOOD, [GOOD, BAD]], "feature 1, element 1"),
        ([GOOD, collection(GOOD, BAD)], "feature 1.1"),
        (BAD, "feature 0"),
        (OPEN, "feature 0"),
    ],
)
def test_feature_is_found_and_mended_in_every_container(
    tmp_path: Path, document: Any, where: str
) -> None:
    path = write(tmp_path, document, "a.geojson.gz")
    assert effects(path) == [("abort", where)]
    done = mend_geojson(path)
    assert done.copy == tmp_path / "a.mended.geojson.gz"
    assert check_geojson(done.copy) == []
    again = read_annotations(done.copy)
    assert [one.geometry.area for one in again] == [81] * (
        json.dumps(document).count("Polygon")
    )


def test_what_has_no_flaw_is_copied_byte_for_byte(tmp_path: Path) -> None:
    odd = b'{ "type":"Feature", "id":"8C8A0D3E-4d83-4d4e-9f0e-3c2b8e1c9a11",\n'
    odd += b'"geometry":{"type":"Point","coordinates":[1.50, 2e0]},'
    odd += b'"properties":{"name":"\\u00fc", "other":[1e3,null]}}'
    text = b'{"a":[1],"type":"FeatureCollection","features":[%s,%s],"b":{"c":2}}'
    path = write(tmp_path, text % (odd, json.dumps(BAD).encode()))
    copy = mend_geojson(path).copy
    assert copy
    data = copy.read_bytes()
    assert odd in data
    assert json.loads(data)["a"] == [1]
    assert json.loads(data)["b"] == {"c": 2}
    assert len(json.loads(data)["features"]) == 2


@pytest.mark.parametrize(
    ("data", "found", "left"),
    [
        (b'{"type": "FeatureCollection", "features": [%s' % ONE, "abort", None),
        (b"", "abort", None),
        (b"[%s,]" % ONE, "abort", None),
        (b"[%s %s]" % (ONE, ONE), "abort", None),
        (b"{1: 2}", "abort", None),
        (b'{"a" 2}', "abort", None),
        (b"[" * 100_000, "abort", None),
        (b"[%s] trailing" % ONE, "abort", 1),
        (b'{"type": "featurecollection", "features": [%s]}' % ONE, "dropped", 1),
        (b'{"features": [%s]}' % ONE, "dropped", 1),
        (b'{"features": [%s], "type": "featurecollection"}' % ONE, "dropped", 1),
        (b'{"type": "FeatureCollection"}', "dropped", None),
        (b'{"type": "FeatureCollection", "features": {}}', "dropped", None),
        (b'{"positive": []}', "dropped", None),
        (b"3", "dropped", None),
        (b"null", "dropped", None),
        (ONE.replace(b'"Feature"', b'"feature"'), "dropped", 1),
        (ONE.replace(b'"Feature"', b"null"), "abort", 1),
        (
            b'{"type": "FeatureCollection", "features": [%s], "crs": {}}' % ONE,
            "kept",
            1,
        ),
    ],
)
def test_file_that_qupath_does_not_read_is_found_and_mended_where_it_can_be(
    tmp_path: Path, data: bytes, found: str, left: int | None
) -> None:
    path = write(tmp_path, data)
    (one,) = check_geojson(path)
    assert one.effect == found
    assert one.where in ("file", "feature 0")
    done = mend_geojson(path)
    assert path.read_bytes() == data
    if left is None:
        assert done.copy is None
        assert done.lost
        assert list(tmp_path.iterdir()) == [path]
    else:
        assert done.copy
        assert done.lost == ()
        assert check_geojson(done.copy) == []
        assert len(read_annotations(done.copy)) == left
        assert b"crs" not in done.copy.read_bytes()


@pytest.mark.parametrize(
    ("row", "effect", "left"),
    [
        (None, "abort", 1),
        ("text", "abort", 1),
        (SQUARE, "abort", 2),
        (OPEN, "abort", 2),
        ({"type": "LinearRing", "coordinates": OPEN["coordinates"][0]}, "abort", 2),
    ],
)
def test_element_of_a_collection_that_is_no_feature(
    tmp_path: Path, row: Any, effect: str, left: int
) -> None:
    path = write(tmp_path, collection(GOOD, row))
    assert {f for f, _ in effects(path)} == {effect}
    done = mend_geojson(path)
    assert done.copy
    assert check_geojson(done.copy) == []
    assert len(read_annotations(done.copy)) == left
    assert bool(done.lost) == (left == 1)


@pytest.mark.parametrize("row", [None, 3, {"type": "Topology"}, {}])
def test_element_of_an_array_that_is_no_feature_is_passed_over(
    tmp_path: Path, row: Any
) -> None:
    path = write(tmp_path, [GOOD, row])
    assert effects(path) == [("dropped", "feature 1")]
    done = mend_geojson(path)
    assert done.copy
    assert json.loads(done.copy.read_text()) == [GOOD]
    assert len(done.lost) == 1


@pytest.mark.parametrize(
    ("name", "data", "effect", "copy"),
    [
        ("a.geojson", gzip.compress(ONE), "abort", "a.mended.geojson"),
        ("a.geojson.gz", ONE, "abort", "a.mended.geojson.gz"),
        ("a.txt", ONE, "dropped", "a.txt.mended.geojson"),
        ("a.gz", gzip.compress(ONE), "dropped", "a.mended.geojson.gz"),
    ],
)
def test_name_that_does_not_fit_is_found_and_the_copys_does(
    tmp_path: Path, name: str, data: bytes, effect: str, copy: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert effects(path) == [(effect, "file")]
    done = mend_geojson(path)
    assert done.copy == tmp_path / copy
    assert check_geojson(done.copy) == []


def test_zip_of_files_is_checked_and_mended_entry_by_entry(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "a.zip",
        good__geojson=ONE,
        bad__json=json.dumps([BAD]).encode(),
        packed__geojson__gz=gzip.compress(json.dumps(LOST).encode()),
        readme__txt=b"hello",
        torn__json=b"{",
    )
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("__MACOSX/._good.geojson", b"\0")
    assert effects(path) == [
        ("abort", "bad.json: feature 0"),
        ("abort", "packed.geojson.gz: feature 0"),
        ("dropped", "readme.txt: file"),
        ("abort", "torn.json: file"),
    ]
    done = mend_geojson(path)
    assert done.copy == tmp_path / "a.mended.zip"
    assert check_geojson(done.copy) == []
    with zipfile.ZipFile(done.copy) as packed:
        assert packed.namelist() == ["good.geojson", "bad.json"]
        assert packed.read("good.geojson").strip() == ONE
        assert {one.compress_type for one in packed.infolist()} == {
            zipfile.ZIP_DEFLATED
        }
    assert [line.partition(":")[0] for line in done.lost] == [
        "packed.geojson.gz",
        "packed.geojson.gz",
        "readme.txt",
        "torn.json",
    ]


def test_zip_under_another_name_and_a_name_without_a_zip(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.geojson", one__geojson=ONE)
    assert effects(path) == [("abort", "file")]
    done = mend_geojson(path)
    assert done.copy == tmp_path / "a.mended.geojson.zip"
    assert check_geojson(done.copy) == []
    assert (len(done.mended), done.lost) == (1, ())
    for name, data in (("b.zip", ONE), ("c.zip", b"PK broken")):
        path = tmp_path / name
        path.write_bytes(data)
        assert effects(path) == [("abort", "file")]
        assert mend_geojson(path).copy is None


def test_ids_and_colours_are_those_of_all_files_in_a_zip(tmp_path: Path) -> None:
    one = GOOD | {"id": "8c8a0d3e-4d83-4d4e-9f0e-3c2b8e1c9a11"}
    data = json.dumps(one).encode()
    path = pack(tmp_path / "a.zip", a__geojson=data, b__geojson=data)
    assert effects(path) == [("kept", "b.geojson: feature 0")]
    copy = mend_geojson(path).copy
    assert copy
    assert check_geojson(copy) == []


@pytest.mark.parametrize("letters", ["latin-1", "utf-16"])
def test_file_in_other_letters_is_found_and_not_guessed(
    tmp_path: Path, letters: str
) -> None:
    text = json.dumps(GOOD, ensure_ascii=False)
    path = write(tmp_path, text.encode(letters))
    found = effects(path)
    assert ("changed", "file") in found
    assert (("abort", "file") in found) == (letters == "utf-16")
    assert mend_geojson(path).copy is None


def test_broken_and_oversized_files_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.geojson.gz"
    path.write_bytes(gzip.compress(ONE)[:-9])
    assert effects(path) == [("abort", "file")]
    monkeypatch.setattr(
        "wsi_pipeline.annotations.qupath.containers.MAX_BYTES", len(ONE) - 1
    )
    for name in ("b.geojson", "b.geojson.gz"):
        (found,) = check_geojson(write(tmp_path, ONE, name))
        assert "split the file" in found.message
    with pytest.raises(RegionError, match="cannot open"):
        check_geojson(tmp_path / "missing.geojson")


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz"])
@pytest.mark.parametrize("document", [collection(LOST, None), [LOST], LOST])
def test_file_of_which_nothing_can_be_kept_has_no_copy(
    tmp_path: Path, document: Any, name: str
) -> None:
    path = write(tmp_path, document, name)
    done = mend_geojson(path)
    assert (done.copy, done.mended) == (None, ())
    assert "feature 0: geometry is null; expected a geometry: left out" in done.lost
    assert "nothing of it can be mended" in done.lost[-1]
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    path = write(tmp_path, BAD)
    other = copy_of(path)
    other.write_text("mine")
    with pytest.raises(RegionError, match="there already"):
        mend_geojson(path)
    assert other.read_text() == "mine"


def test_memory_holds_the_text_and_a_feature_and_not_all_of_them(
    tmp_path: Path,
) -> None:
    rows = [
        GOOD | {"properties": {"name": f"{n}", "a": [n, 0.5] * 50}} for n in range(2000)
    ]
    path = write(tmp_path, collection(*rows))
    size = path.stat().st_size
    tracemalloc.start()
    held = json.loads(path.read_bytes())
    whole = tracemalloc.get_traced_memory()[0]
    del held
    tracemalloc.reset_peak()
    assert check_geojson(path) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the bytes and the letters, once each, a piece of the file, and one feature
    assert peak < 2 * size + (1 << 20) < whole


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text() | st.sampled_from(["type", "features"]), inner)
        ),
        max_leaves=20,
    ),
    st.sampled_from([None, 1]),
    st.integers(0, 200),
)
def test_elements_are_those_of_the_document(
    document: Any, indent: int | None, cut: int
) -> None:
    text = json.dumps(document, indent=indent)
    elements = Elements(text)
    found = list(elements)
    assert [json.dumps(json.loads(one.text)) for one in found] == [
        json.dumps(one.value) for one in found
    ]
    values = [one.value for one in found]
    if elements.form == "collection":
        whole = elements.members | {"features": values}
    else:
        whole = values if elements.form == "array" else values[0]
    assert json.dumps(whole, sort_keys=True) == json.dumps(document, sort_keys=True)
    assert elements.ends_clean
    try:
        json.loads(text[:cut])
    except ValueError:
        with pytest.raises(NotJsonError):
            list(Elements(text[:cut]))


def wsi(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsi_pipeline", "check-geojson"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_verb_tells_clean_altered_and_refused_files_by_its_exit_code(
    tmp_path: Path,
) -> None:
    good = write(tmp_path, GOOD, "good.geojson")
    lying = GOOD | {"properties": {"objectType": "region"}}
    altered = write(tmp_path, lying, "altered.geojson")
    refused = write(tmp_path, [GOOD, BAD, LOST], "refused.geojson")
    nothing = write(tmp_path, {"a": 1}, "nothing.geojson")
    codes = [wsi(path).returncode for path in (good, altered, refused, nothing)]
    assert codes == [0, 3, 1, 1]
    done = wsi(good, altered, tmp_path / "missing.geojson", refused)
    assert done.returncode == 1
    assert f"{good}: fine" in done.stdout
    assert f"{altered}: changed: feature 0: objectType 'region'" in done.stdout
    assert f"{refused}: abort: feature 1: 1 open rings" in done.stdout
    assert f"{tmp_path}/missing.geojson: cannot open it" in done.stdout
    fixed = wsi("--fix", "--json", good, altered, refused)
    assert fixed.returncode == 3
    first, second, third = json.loads(fixed.stdout)
    assert (first["code"], first["copy"]) == (0, None)
    assert (second["code"], second["copy"]) == (0, str(copy_of(altered)))
    assert third["code"] == 3
    assert len(third["mended"]) == len(third["lost"]) == 1
    assert wsi("--fix", nothing).returncode == 1
    assert wsi(*tmp_path.glob("*.mended.*")).returncode == 0


def test_real_files_are_read_by_qupath_or_no_geojson(data_dir: Path) -> None:
    files = sorted((data_dir / "annotations").glob("*json"))
    found = {path.name: check_geojson(path) for path in files}
    no_geojson = {"103S.json", "Normal_001.json", "Tumor_001.json"}
    for name, rows in found.items():
        assert {row.effect for row in rows} <= {"changed", "dropped"}
        assert any("no GeoJSON" in row.message for row in rows) == (name in no_geojson)
    # its properties have a "type" of their own, of which QuPath makes annotations
    odd = found["large_image_sample_notqupath.geojson"]
    assert {row.message for row in odd} == {
        "type 'polyline' is unknown: read as annotation",
    }
    assert sum(map(bool, found.values())) == 4
