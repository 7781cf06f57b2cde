"""The report: every slide once, every text escaped, the same bytes twice."""

import csv
from html.parser import HTMLParser
from pathlib import Path

import pytest

from wsi_pipeline.errors import ConfigError, ExportError
from wsi_pipeline.reporting import (
    Attention,
    ClassArea,
    RunFacts,
    SlideRow,
    row_of,
    write_report,
)
from wsi_pipeline.results import Manifest

RUN = RunFacts(
    model="glas",
    purpose="colon glands at 0.62 um/px",
    licence="research only",
    version="0.1.0",
    started="2026-01-01 12:00",
    seconds=125.0,
    command="wsi run 'a b.svs' -o out",
)
GLAND = ClassArea("Benign gland", (0, 158, 115), 12.5)
DONE = SlideRow(
    "one-0a1b2c3d",
    "one.svs",
    "done",
    tissue_mm2=104.4,
    areas=(GLAND, ClassArea("Malignant gland", (213, 94, 0), 0.25)),
    examined_share=0.125,
    mpp=0.499,
    mpp_source="aperio.MPP",
    seconds=3725.0,
    peak_memory_bytes=3 * 2**29,
    folder="one-0a1b2c3d",
    pictures=("attention.png", "overlay.png", "thumbnail.png", "top_patches.png"),
    files=(
        ("GeoJSON for QuPath", "segmentation.geojson"),
        ("Attention for QuPath", "attention.geojson"),
    ),
    attention=Attention(1234, 64, 0.425, (("cancer", 0.875),), "mode exact"),
)
NEW = {"reused": False}
FAILED = SlideRow("two-4e5f6a7b", "two.svs", "failed", reason="It is truncated.")


class Page(HTMLParser):
    """Tags, attributes and text of a page; unbalanced tags fail."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self, attribute: str) -> list[str | None]:
        return [a[attribute] for _, a in self.tags if attribute in a]


def report(tmp_path: Path, *rows: SlideRow, run: RunFacts = RUN) -> Page:
    write_report(tmp_path, rows, run)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def table(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "slides.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_finished_slide_shows_its_numbers_picture_and_geojson(
    tmp_path: Path,
) -> None:
    page = report(tmp_path, DONE)
    for shown in (
        "104 mm²",
        "Benign gland: 12.5 mm²",
        "Malignant gland: 0.25 mm²",
        "12 %",
        "0.499 µm, from aperio.MPP",
        "1 h 02 min",
        "1.5 GiB",
        "took 2 min 05 s",
        "Research use only, not for diagnosis.",
        "licence of the model: research only",
        "64 of 1234",
        "42 %",
        "Predicted for the whole slide: cancer, probability 0.88. Research use only;",
        "Patches were scored in mode exact.",
    ):
        assert shown in page.text
    assert page.links("src") == [
        "one-0a1b2c3d/overlay.png",
        "one-0a1b2c3d/attention.png",
        "one-0a1b2c3d/top_patches.png",
    ]
    assert page.links("href") == [
        "slides.csv",
        "one-0a1b2c3d/overlay.png",
        "one-0a1b2c3d/attention.png",
        "one-0a1b2c3d/top_patches.png",
        "one-0a1b2c3d/segmentation.geojson",
        "one-0a1b2c3d/attention.geojson",
        "one-0a1b2c3d/thumbnail.png",
    ]
    assert "background:#009e73" in str(page.links("style"))


def test_a_failed_slide_shows_its_reason_and_no_dead_link(tmp_path: Path) -> None:
    page = report(tmp_path, FAILED)
    assert "It is truncated." in page.text
    assert page.links("href") == ["slides.csv"]
    assert page.links("src") == []
    assert "None" not in page.text


def test_totals_count_slides_statuses_and_areas(tmp_path: Path) -> None:
    again = SlideRow(
        "three", "three.svs", "done", reused=True, tissue_mm2=5.6, areas=(GLAND,)
    )
    text = " ".join(report(tmp_path, DONE, FAILED, again).text.split())
    assert (
        "3slides 2done 0degraded 1failed 0skipped 1from an earlier run "
        "110mm² of tissue Benign gland: 25 mm² in all Malignant gland: 0.25 mm² in all"
    ) in text


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    evil = "\"><script>alert(1)</script>\n'&<img src=x onerror=alert(2)>"
    row = SlideRow(
        "evil",
        evil,
        "degraded",
        reason=evil,
        areas=(ClassArea(evil, (1, 2, 3), 1.0),),
        mpp=0.5,
        mpp_source=evil,
        folder="evil",
        pictures=("overlay.png",),
        files=((evil, evil), (evil, evil)),
        attention=Attention(2, 1, 0.5, ((evil, 0.5),), evil),
        warnings=(evil,),
    )
    run = RunFacts(evil, evil, evil, evil, evil, 1.0, evil)
    page = report(tmp_path, row, run=run)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags
    assert tags.count("img") == 1
    # title, model, command, purpose, licence, version, start; name, reason, two areas,
    # mpp source, task, how it was scored, warning, two files
    assert page.text.count("<script>alert(1)</script>") == 17
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)]
    assert [
        h for h in page.links("href") if h and ("<" in h or "javascript" in h)
    ] == []
    assert table(tmp_path)[0]["slide"] == evil.replace("\n", r"\n")


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    page = report(tmp_path, DONE)
    policy = [a["content"] for tag, a in page.tags if "http-equiv" in a]
    assert policy == [
        "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
    ]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})
    for link in page.links("href") + page.links("src"):
        assert link is not None
        assert "//" not in link


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\uff1d"])
def test_no_cell_is_taken_for_a_formula(tmp_path: Path, start: str) -> None:
    name = f'{start}HYPERLINK("http://x")'
    area = ClassArea(name, (0, 0, 0), 1.5)
    row = SlideRow("a", name, "failed", reason=name, areas=(area,), warnings=(name,))
    write_report(tmp_path, [row], RUN)
    cells = table(tmp_path)[0]
    for column in ("slide", "reason", "warnings"):
        assert cells[column] == f"'{name}"
    # the prefix of the column's name is what protects it
    assert cells[f"area_mm2_{name}"] == "1.5"


def test_the_table_holds_every_slide_and_class(tmp_path: Path) -> None:
    write_report(tmp_path, [FAILED, DONE], RUN)
    first, second = table(tmp_path)
    assert first == {
        "slide_id": "one-0a1b2c3d",
        "slide": "one.svs",
        "status": "done",
        "reason": "",
        "reused": "false",
        "mpp_um_per_px": "0.499",
        "mpp_source": "aperio.MPP",
        "tissue_mm2": "104.4",
        "examined_share": "0.125",
        "seconds": "3725",
        "peak_memory_bytes": "1610612736",
        "unreadable_tiles": "",
        "warnings": "",
        "area_mm2_Benign gland": "12.5",
        "area_mm2_Malignant gland": "0.25",
        "patches": "1234",
        "chosen_patches": "64",
        "captured_attention": "0.425",
        "probability_cancer": "0.875",
    }
    assert second["patches"] == second["probability_cancer"] == ""
    assert second["status"] == "failed"
    assert second["tissue_mm2"] == second["area_mm2_Benign gland"] == ""


def test_the_order_of_rows_does_not_change_a_byte(tmp_path: Path) -> None:
    contents = []
    for rows in ([DONE, FAILED], [FAILED, DONE]):
        write_report(tmp_path, rows, RUN)
        contents.append(
            [(tmp_path / name).read_bytes() for name in ("slides.csv", "report.html")]
        )
    assert contents[0] == contents[1]


def test_a_name_that_is_no_unicode_is_written_with_its_bytes_shown(
    tmp_path: Path,
) -> None:
    page = report(tmp_path, SlideRow("x", "sl\udcffide.svs", "skipped"))
    assert "sl\\udcffide.svs" in page.text


def test_an_empty_run_is_a_page_too(tmp_path: Path) -> None:
    assert "0slides" in report(tmp_path).text
    assert table(tmp_path) == []


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 'fine'"):
        SlideRow("x", "x.svs", "fine")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(0.0, "below 0.01"), (0.01, "0.01"), (0.5, "0.50"), (0.9999, "above 0.99")],
)
def test_no_prediction_is_shown_as_sure(
    tmp_path: Path, probability: float, shown: str
) -> None:
    choice = Attention(5, 5, 1.0, (("cancer", probability),))
    row = SlideRow("a", "a.svs", "done", attention=choice)
    assert f"probability {shown}. Research" in report(tmp_path, row).text


SELECTED = {
    "mode": "exact",
    "batch": 64,
    "device": "cuda",
    "precision": "bfloat16",
    "budget_bytes": 5 << 30,
    "peak_allocated_bytes": 1 << 30,
    "peak_reserved_bytes": 3 << 30,
    "downgrades": [],
    "predictions": {"cancer": 0.25},
    "patches": 900,
    "chosen": 64,
    "captured_mass": 0.3,
    "warnings": ["choose more with --top-m"],
}


def test_the_record_of_select_is_told_in_words(tmp_path: Path) -> None:
    def row(**changes: object) -> SlideRow:
        facts = {"tile": {"mpp": [0.5, 0.5], "warnings": ["odd"]}}
        facts |= {"select": SELECTED | changes}
        return row_of(tmp_path, Manifest("a", "a.svs", "k", "done", "", facts), **NEW)

    first = row()
    assert first.attention == Attention(
        900,
        64,
        0.3,
        (("cancer", 0.25),),
        "mode exact; 64 patches at a time on cuda, bfloat16; 5.0 GiB allowed; "
        "3.0 GiB used at the peak",
    )
    assert first.warnings == ("odd", "choose more with --top-m")
    assert "choose more" in report(tmp_path, first).text
    again = row(downgrades=[[64, 32], [32, 16]])
    assert again.attention is not None
    assert again.attention.how.endswith("fewer at a time 2 times, out of memory")


def test_a_manifest_of_a_failed_or_earlier_run_has_a_row_too(tmp_path: Path) -> None:
    failed = Manifest("a", "a.svs", "k", "failed", "why", {"lasting": True})
    assert row_of(tmp_path, failed, **NEW).attention is None
    old = Manifest("a", "a.svs", "k", "done", "", {"select": {"mode": "exact"}})
    assert row_of(tmp_path, old, **NEW).attention is None


def test_a_row_has_the_pictures_and_files_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("attention.png", "top_patches.png"):
        (tmp_path / "a" / name).write_bytes(b"")
    written = [
        {"title": "GeoJSON for QuPath", "path": "segmentation.geojson.gz"},
        {"title": "Areas (CSV)", "path": "areas.csv"},
    ]
    export = {"files": written, "detections": ["attention.geojson.gz"]}
    done = Manifest("a", "a.svs", "k", "done", "", {"export": export})
    row = row_of(tmp_path, done, **NEW)
    assert row.pictures == ("attention.png", "top_patches.png")
    assert row.files == (
        ("GeoJSON for QuPath", "segmentation.geojson.gz"),
        ("Areas (CSV)", "areas.csv"),
        ("Attention for QuPath", "attention.geojson.gz"),
    )
    none = Manifest("a", "a.svs", "k", "done", "", {"export": {"detections": []}})
    assert row_of(tmp_path, none, **NEW).files == ()


def test_a_folder_that_cannot_be_written_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        write_report(tmp_path / "file", [DONE], RUN)
