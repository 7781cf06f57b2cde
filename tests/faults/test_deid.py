"""No token that is planted in slides, names and folders is in any result."""

import base64
import csv
import gzip
import io
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest
import zarr

from tests.faults.planted import (
    LABEL,
    MARK,
    NAMED,
    Tokens,
    noted,
    write_all,
    write_dicom,
    write_tiff,
)
from tests.tiff_files import Make, encode_tile, tissue_like
from wsi_pipeline import deidentifying
from wsi_pipeline.batch import BatchHooks, BatchResult, run_batch
from wsi_pipeline.config import RunConfig
from wsi_pipeline.deidentifying import pseudonymous
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.readers import tiff
from wsi_pipeline.readers.base import plain
from wsi_pipeline.readers.jpeg_notes import without_notes
from wsi_pipeline.samplesheet import Entry
from wsi_pipeline.terminal import Terminal

pytestmark = pytest.mark.promise("R14")


def needles(word: str) -> list[bytes]:
    """A word as text, in UTF-16, and as base64 at any place in a line."""
    found = [word.encode(), word.encode("utf-16-le"), word.encode("utf-16-be")]
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + word.encode())
        found.append(coded[4 if shift else 0 : len(coded) // 4 * 4 - 4])
    return found


def contents(root: Path) -> Iterator[tuple[str, bytes]]:
    """Names, bytes, packed bytes and decoded chunks of all below a folder."""
    for path in sorted(root.rglob("*")):
        yield f"{path} (its name)", str(path.relative_to(root)).encode(errors="replace")
        if path.is_symlink():
            yield f"{path} (link)", os.fsencode(path.readlink())
        if not path.is_file():
            continue
        data = path.read_bytes()
        yield str(path), data
        if path.suffix == ".gz":
            yield str(path), gzip.decompress(data)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as packed:
                yield from (
                    (str(path), packed.read(name)) for name in packed.namelist()
                )
        elif path.suffix == ".png":
            pixels = np.asarray(PIL.Image.open(path).convert("RGB"))
            assert not (pixels == LABEL).all(axis=-1).any(), f"{path}: the label"
        if path.name == "zarr.json" and b'"array"' in data:
            yield (
                f"{path} (chunks)",
                np.asarray(zarr.open_array(path.parent)[:]).tobytes(),
            )


def write_sheet(folder: Path, slides: list[Path]) -> Path:
    """A samplesheet whose name and samples are tokens too."""
    sheet = folder / f"{NAMED}.csv"
    rows = [
        f"{NAMED}-{number},{slide},{0.5 if slide.suffix == '.dcm' else ''}\n"
        for number, slide in enumerate(slides)
    ]
    sheet.write_text("sample,slide,mpp\n" + "".join(rows))
    return sheet


def leaks(root: Path, *words: str) -> list[str]:
    """Where a word is; all that are planted begin with MARK."""
    any_word = [needle.lower() for needle in needles(MARK)]
    wanted = [needle.lower() for word in words for needle in needles(word)]
    found = []
    for name, data in contents(root):
        low = data.lower()
        if any(needle in low for needle in any_word):
            found += [name for needle in wanted if needle in low]
    return found


def run(
    slides: list[Path], out: Path, deid: Path | None, **tile: object
) -> tuple[BatchResult, str]:
    told = io.StringIO()
    config = (
        RunConfig(model="synthetic")
        .updated("tile", scheduler="threads", target_mpp="native", **tile)
        .updated("export", zip=True)
    )
    with Terminal() as shown:
        shown.console.file = told
        hooks = BatchHooks(shown.started, shown.stage, shown.ended)
        model = find_model("synthetic")
        result = run_batch(slides, out, model, config, deid=deid, hooks=hooks)
        shown.summary(result, out)
    return result, told.getvalue()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that is searched too; labels may not be opened."""

    def refuse(_: object) -> object:
        raise AssertionError("a label or macro image was opened")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refuse))
    (tmp_path / "temp").mkdir()
    (tmp_path / "keys").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    return tmp_path


def damaged(slides: list[Path], folder: Path) -> list[Path]:
    """Copies that fail: cut short, without scale, overwritten, and no slide at all."""
    made = []
    for number, slide in enumerate(slides):
        data = bytearray(slide.read_bytes())
        cut = data[: len(data) * 2 // 3]
        data[4:200] = bytes(196)
        for kind, content in (("a", bytes(cut)), ("b", bytes(data))):
            made.append(folder / f"{NAMED}-bad{number}{kind}{slide.suffix}")
            made[-1].write_bytes(content)
    made.append(folder / f"{NAMED}-text.svs")
    made[-1].write_text(MARK)
    return made


@pytest.mark.faults
def test_no_token_leaves_under_pseudonyms_and_none_but_names_without(
    place: Path, data_dir: Path
) -> None:
    token = Tokens()
    slides = write_all(place / f"{NAMED}-folder", token)
    dicom = data_dir / "slides" / "dicom" / "multiframe_camelyon_challenge_image.dcm"
    if not dicom.is_file():
        pytest.skip(f"no DICOM slide at {dicom}")
    slides.append(write_dicom(dicom, place / f"{NAMED}5" / f"{NAMED}5.dcm", token))
    bad = damaged(slides[1:4], slides[0].parent)
    assert len(token.given) >= 25
    key = place / "keys" / "key.csv"
    sheet = write_sheet(slides[0].parent, [*slides, *bad])
    result, told = run([sheet], place / "out", key, codec="jpeg")
    assert result.count("done", "degraded") == len(slides) == 5
    assert result.count("failed") == len(bad)
    assert leaks(place / "out", MARK) == leaks(place / "temp", MARK) == []
    assert MARK.lower() not in told.lower()
    assert [path.name for path in key.parent.iterdir()] == ["key.csv"]
    # the search finds what is there, and without pseudonyms only names are
    plainly, told = run([*slides[:4], *bad], place / "plain", None, codec="jpeg")
    assert (plainly.count("done"), plainly.count("failed")) == (4, len(bad))
    assert leaks(place / "plain", NAMED)
    assert leaks(place / "plain", *token.given) == []
    assert not [word for word in token.given if word.lower() in told.lower()]


def test_a_slide_runs_under_its_pseudonym_and_again(place: Path) -> None:
    slide = write_tiff(place / f"{NAMED}.tif", Tokens(), MARK, MARK)
    key = place / "keys" / "key.csv"
    first, told = run([slide], place / "out", key)
    (outcome,) = first.outcomes
    assert outcome.manifest.slide == f"{outcome.manifest.slide_id}.tif"
    assert leaks(place / "out", MARK) == leaks(place / "temp", MARK) == []
    assert MARK not in told
    again, _ = run([slide], place / "out", key)
    assert [o.reused for o in again.outcomes] == [True]
    assert leaks(place / "keys", MARK) == [str(key)]


def test_tiles_are_copied_without_their_comments(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = Tokens()
    slide = write_tiff(place / "a.tif", token, "a scan", "a program")
    run([slide], place / "out", None, codec="jpeg")
    assert leaks(place / "out", MARK) == []
    monkeypatch.setattr(tiff, "without_notes", lambda jpeg: jpeg)
    run([slide], place / "open", None, codec="jpeg")
    found = leaks(place / "open", MARK)
    assert found
    assert all("slide.ome.zarr/0/" in name for name in found)


def test_notes_are_taken_out_and_what_decodes_is_left() -> None:
    token, tile = Tokens(), tissue_like(64, 64)
    for marker in ("", "jfif", "adobe"):
        make = Make(marker=marker)
        assert without_notes(noted(tile, token, make)) == encode_tile(tile, make)
    tables = b"\xff\xd8\xff\xdb\0\4ab\xff\xfe\0\4no\xff\xd9"
    assert without_notes(tables) == b"\xff\xd8\xff\xdb\0\4ab\xff\xd9"
    for broken in (b"", b"\xff\xd8", b"\xff\xd8\xff\xfe\0\4no", b"\xff\xd8ab\0\0"):
        assert without_notes(broken) is None


def test_what_a_library_quotes_from_a_file_is_left_out() -> None:
    for quoted in ("'Smith'", '"Smith"', "`Smith'", "\u201cSmith\u201d", "'Smith\nJ'"):
        assert (
            plain(ValueError(f"cannot parse {quoted} here")) == "cannot parse ... here"
        )
    assert plain(ValueError("it can't, and won't")) == "it can't, and won't"


def hidden(entries: list[Entry], key: Path, out: Path) -> list[Entry]:
    with pseudonymous(entries, RunConfig(), key, out) as (found, _):
        assert all(entry.path.exists() for entry in found)
        assert len({entry.slide_id for entry in found}) == len(entries)
        return found


def test_pseudonyms_are_random_kept_and_told_in_the_table_only(tmp_path: Path) -> None:
    key, out = tmp_path / "key.csv", tmp_path / "out"
    entries = [Entry(tmp_path / f"{n}\r\n\udcff.svs", f"s{n}") for n in range(9)]
    for entry in entries:
        entry.path.touch()
    first = hidden(entries, key, out)
    assert [e.slide_id for e in first] == sorted(e.slide_id for e in first)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = hidden(entries[::-1], key, out)
    assert [e.slide_id for e in again] == [e.slide_id for e in first]
    with key.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(r["sample"], r["slide"]) for r in rows} == {
        (e.slide_id, str(e.path)) for e in entries
    }
    assert {r["pseudonym"] for r in rows} == {e.slide_id for e in first}
    others = hidden(entries, tmp_path / "other.csv", out)
    assert {e.slide_id for e in others}.isdisjoint(e.slide_id for e in first)


@pytest.mark.parametrize(
    "kind", ["open", "link", "cut", "foreign", "inside", "nowhere"]
)
def test_a_table_that_is_not_safe_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.svs").touch()
    entry = Entry(tmp_path / "a.svs", "a")
    key, out = tmp_path / "key.csv", tmp_path / "out"
    hidden([entry], key, out)
    words = {
        "open": "chmod 600", "link": "cannot write", "cut": "cut short",
        "foreign": "no table", "inside": "lies in the results",
        "nowhere": "cannot write",
    }[kind]  # fmt: skip
    if kind == "open":
        key.chmod(0o640)
    elif kind == "link":
        shutil.move(key, tmp_path / "real.csv")
        key.symlink_to(tmp_path / "real.csv")
    elif kind == "cut":
        key.write_text(key.read_text()[:-4])
    elif kind == "foreign":
        key.write_text("a,b\n1,2\n")
    elif kind == "inside":
        key = out / "key.csv"
    else:
        key = tmp_path / "gone" / "key.csv"
    with pytest.raises(ConfigError, match=words):
        hidden([entry], key, out)
    assert not out.exists()


def test_files_of_a_slide_are_linked_with_it(tmp_path: Path) -> None:
    (tmp_path / "Smith").mkdir()
    for name in ("Smith.mrxs", "Smith/Slidedat.ini", "Smith-mask.geojson.gz", "J.h5"):
        (tmp_path / name).touch()
    entry = Entry(
        tmp_path / "Smith.mrxs",
        "Smith",
        tissue=tmp_path / "Smith-mask.geojson.gz",
        features=tmp_path / "J.h5",
    )
    with pseudonymous([entry], RunConfig(), tmp_path / "k", tmp_path / "o") as (
        (found,),
        _,
    ):
        name, place = found.slide_id, found.path.parent
        assert {path.name for path in place.iterdir()} == {
            name, f"{name}.mrxs", "tissue.geojson.gz", "features.h5",
        }  # fmt: skip
        assert (place / name / "Slidedat.ini").is_file()
        assert found.tissue == place / "tissue.geojson.gz"
        assert found.features == place / "features.h5"
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert not place.exists()
    assert deidentifying.COLUMNS == ("pseudonym", "sample", "slide")
