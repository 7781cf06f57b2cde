"""Hostile names are inert: in paths, pages, tables, GeoJSON and on terminals."""

import csv
import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import tifffile
from jinja2 import Environment

from tests.test_reporting import RUN, Page
from wsi_pipeline import cli, inert, reporting, samplesheet, terminal
from wsi_pipeline.batch import BatchHooks, BatchResult, run_batch
from wsi_pipeline.config import RunConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.evaluation import report as evaluation_report
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.reporting import SlideRow, row_of, write_report
from wsi_pipeline.samplesheet import list_entries
from wsi_pipeline.terminal import Terminal

pytestmark = pytest.mark.promise("R13")
CANARY = "canary"
NAMES = (
    "plain", "-rf", "--out=x", "a b", " lead", "trail ", "..", "$(touch canary)",
    "`touch canary`", ";touch canary;", "|touch canary", "&& touch canary", ">canary",
    "'single", '"double', "\\back", "..\\..\\up", "%2e%2e%2fup", "~root", "{sample}",
    "{{ 7 * 7 }}", "{% raw %}", "<script>alert(1)", "<b>", "<!--", "<!--<script>",
    '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "javascript:alert(1)",
    "&lt;script&gt;", "=cmd|' C'!A0", "=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1",
    " =1", "\uff1d1", "new\nline", "cr\rline", "esc\x1b[2J\x1b]0;owned\x07", "c1\x9b2J",
    "rtl\u202egnp", "zero\u200bwidth", "line\u2028sep", "caf\u00e9", "cafe\u0301",
    "Case", "case", "\u4e2d\u6587", "\U0001f52c", "x" * 251, "\udcff\udcfe", "*", "[a]",
    "?", "con", "run.json", "manifest", "#", "%s%n", "[bold red]rich[/]", "[link=x]y",
    "a/same", "b/same", "</script>", "<a/><script>alert(1)",
)  # fmt: skip
"""Below one folder; a slash in a name makes a folder of what is before it."""


def write_blank(path: Path) -> Path:
    """A slide without tissue, which takes 0.4 s from end to end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        np.full((256, 256, 3), 250, np.uint8),
        tile=(64, 64),
        compression="jpeg",
        photometric="rgb",
        resolution=(20000, 20000),
        resolutionunit=3,
        metadata=None,
    )
    return path


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_blank(tmp_path_factory.mktemp("blank") / "a.tif").read_bytes()


def run(slides: list[Path | str], out: Path, told: io.StringIO) -> BatchResult:
    with Terminal() as shown:
        shown.console.file = told
        hooks = BatchHooks(shown.started, shown.stage, shown.ended)
        config = RunConfig().updated("tile", scheduler="threads")
        result = run_batch(slides, out, find_model("synthetic"), config, hooks=hooks)
        shown.summary(result, out)
    return result


@pytest.fixture(scope="module")
def many(
    tmp_path_factory: pytest.TempPathFactory, blank: bytes
) -> tuple[Path, BatchResult, str]:
    """Slides of all names and the links among them, run; and what was printed."""
    place = tmp_path_factory.mktemp("names")
    slides = place / "slides"
    for name in NAMES:
        path = Path(f"{slides}/{name}.tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(blank)
    (slides / "link\x1b.tif").symlink_to(slides / "plain.tif")
    (slides / "gone<b>\u202e.tif").symlink_to(slides / "nowhere.tif")
    (slides / "loop").symlink_to(slides)
    (slides / "self.tif").symlink_to(slides / "self.tif")
    (place / "cwd").mkdir()
    before, home = tree(place), Path.cwd()
    told = io.StringIO()
    os.chdir(place / "cwd")
    try:
        result = run([slides], place / "out", told)
    finally:
        os.chdir(home)
    made = {name for name in tree(place) - before if not name.startswith("out")}
    assert made == set(), "files outside the folder of results"
    return place / "out", result, told.getvalue()


@pytest.mark.faults
def test_each_slide_has_results_of_its_own_inside_the_folder(
    many: tuple[Path, BatchResult, str],
) -> None:
    out, result, _ = many
    assert len(NAMES) >= 40
    by_status: dict[str, list[str]] = {}
    for outcome in result.outcomes:
        by_status.setdefault(outcome.manifest.status, []).append(outcome.path.name)
    # two names begin with a dot, which is not looked for; of two spellings of one
    # Unicode name, and of a link and its file, one is run
    assert len(by_status["done"]) == len(NAMES) - 3
    assert sorted(by_status["failed"]) == ["gone<b>\u202e.tif", "self.tif"]
    assert by_status["skipped"] == ["caf\u00e9.tif", "plain.tif"]
    folders = [path for path in out.iterdir() if path.is_dir()]
    assert len(folders) == len(by_status["done"]) + len(by_status["failed"])
    assert len({path.name.lower() for path in folders}) == len(folders)
    for path in out.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", path.name)
        assert path.resolve().is_relative_to(out.resolve())


@pytest.mark.faults
def test_no_name_becomes_markup_formula_or_escape_code(
    many: tuple[Path, BatchResult, str], tmp_path: Path
) -> None:
    out, result, told = many
    rows = [row_of(out, o.manifest, reused=False) for o in result.outcomes]
    page = Page((out / "report.html").read_text("utf-8"))
    plain = [replace(r, slide="a.tif", reason="why" if r.reason else "") for r in rows]
    write_report(tmp_path, plain, replace(RUN, command=""))
    calm = Page((tmp_path / "report.html").read_text("utf-8"))
    assert kinds(page) == kinds(calm)
    assert not odd(page.text)
    assert not odd(told)
    *lines, last = told.splitlines()
    assert all(re.match(r"\[\d+/\d+\] /|  ", line) for line in lines), "a line split"
    assert last.startswith("64 done, 2 failed, 2 skipped")
    with (out / "slides.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(rows)
    for row in table:
        assert not risky(row)
    files = [*out.glob("*/*.geojson"), out / "run.json"]
    assert len(files) > len(NAMES)
    for file in files:
        orjson.loads(file.read_bytes())


def kinds(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    """Elements and the names of their attributes, one after the other."""
    return sorted((tag, tuple(facts)) for tag, facts in page.tags)


def odd(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c != "\n"}


def risky(row: dict[str, str]) -> list[str]:
    return [v for v in row.values() if re.match(r"\s*[=+@\uff1d-]|[\t\r\n]", v)]


EVIL = '=<script>alert(1)</script>\x1b[2J\u202e"><b onclick=x>'


def report_of(folder: Path) -> tuple[Page, dict[str, str]]:
    write_report(folder, [SlideRow("a", EVIL, "failed", EVIL, warnings=(EVIL,))], RUN)
    with (folder / "slides.csv").open(encoding="utf-8", newline="") as stream:
        table = next(iter(csv.DictReader(stream)))
    return Page((folder / "report.html").read_text("utf-8")), table


def test_without_the_guards_names_get_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, row = report_of(tmp_path)
    assert "script" not in dict(page.tags)
    assert not odd(page.text)
    assert not risky(row)
    monkeypatch.setattr(reporting, "shown", lambda text: text)
    assert odd(report_of(tmp_path)[0].text) == {"\x1b", "\u202e"}
    monkeypatch.setattr(reporting, "cell", lambda value: value)
    assert risky(report_of(tmp_path)[1]) == [EVIL] * 3

    def open_environment(**options: object) -> Environment:
        return Environment(**(options | {"autoescape": False}))  # noqa: S701

    monkeypatch.setattr(reporting, "Environment", open_environment)
    with pytest.raises(AssertionError):  # elements that are not closed
        report_of(tmp_path)


def test_without_the_guard_terminals_get_escape_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> str:
        monkeypatch.setattr(sys, "argv", ["wsi", "info", str(tmp_path / EVIL)])
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().err

    assert not odd(refused())
    monkeypatch.setattr(cli, "shown", lambda text: text)
    assert odd(refused())
    told = io.StringIO()
    monkeypatch.setattr(terminal, "shown", lambda text: text)
    with Terminal() as screen:
        screen.console.file = told
        screen.started(1, 1, Path(EVIL))
    assert odd(told.getvalue())


@pytest.mark.parametrize(
    "sample",
    [
        *("../x", "/abs", "a/../../b", "..", ".", ".hidden", "a b", "x\ny", "\u00e9"),
        *("a\0b", "$(touch canary)", "<b>", "=1", "~", "C:x", "x" * 101, ""),
        *("run.json", "Slides.CSV", "report.html", "open_in_qupath.groovy"),
    ],
)
def test_samples_that_are_no_folder_names_are_refused(
    tmp_path: Path, sample: str
) -> None:
    sheet = sheet_of(tmp_path, sample)
    with pytest.raises(ConfigError, match=r"line 2: sample|no CSV"):
        list(list_entries([sheet]))


def sheet_of(folder: Path, *samples: str) -> Path:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerows([("sample", "slide"), *((name, "a.tif") for name in samples)])
    (folder / "s.csv").write_text(stream.getvalue())
    return folder / "s.csv"


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplesheet, "_SAMPLE", re.compile(r"(?s).*"))


def test_without_the_guard_a_sample_leaves_the_folder(
    tmp_path: Path, blank: bytes, unguarded: None
) -> None:
    (tmp_path / "a.tif").write_bytes(blank)
    run([sheet_of(tmp_path, "../left")], tmp_path / "out", io.StringIO())
    assert (tmp_path / "left").is_dir()


def test_a_sheet_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    for text in ("sample,slide\n" + "x" * 200_000, "x" * 200_000):
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(ConfigError, match="no CSV that can be read"):
            list(list_entries([tmp_path / "s.csv"]))


def test_tables_of_an_evaluation_hold_no_markup_and_no_formula() -> None:
    assert inert.markdown_cell("a|b\n<script>&") == r"a\|b\n&lt;script>&amp;"
    for start in "=+-@\uff1d":
        assert inert.cell(f"{start}1") == f"'{start}1"
    assert inert.cell("\t=1\r\n") == r"\t=1\r\n"
    assert inert.cell(" =1") == "' =1"
    assert [inert.cell(value) for value in (-1, -0.5, None)] == [-1, -0.5, None]
    assert evaluation_report.cell is inert.cell
