"""Impossible geometry is refused and odd geometry warned of, in a small process."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.odd_slides import CASES, Case, one_strip
from wsi_pipeline.errors import SlideError
from wsi_pipeline.readers import open_slide, scale, tiff_layout

pytestmark = pytest.mark.promise("R5")

MOST_BYTES = 300_000_000
NAMED = {case.name: case for case in CASES}
# reads [path, mpp] pairs; prints a list of [refusal, warnings] and its peak memory
LOOK = """
import json, sys
from wsi_pipeline.errors import SlideError
from wsi_pipeline.process import peak_resident_bytes
from wsi_pipeline.readers import open_slide
from wsi_pipeline.readers.probe import Prober, read_samples
def here(path, mpp):
    slide = open_slide(path, mpp=mpp)
    read_samples(slide)
    return slide.info
with Prober() as prober:
    look, said = (here if sys.argv[1] == "here" else prober.probe), []
    for path, mpp in json.load(sys.stdin):
        try:
            said.append(["", look(path, mpp=mpp).warnings])
        except SlideError as error:
            said.append([str(error), []])
print(json.dumps([said, peak_resident_bytes()]))
"""


def look_at(where: str, slides: list[tuple[Path, float | None]]) -> tuple[Any, int]:
    given = json.dumps([(str(path), mpp) for path, mpp in slides])
    run = subprocess.run(
        [sys.executable, "-c", LOOK, where],
        input=given,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    said, peak = json.loads(run.stdout)
    return said, peak


def test_every_case_is_refused_or_warned_of_by_its_rule(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    assert len(NAMED) == len(CASES) >= 60
    slides = []
    for number, case in enumerate(CASES):
        path = tmp_path / f"{number}{case.ending}"
        case.make(path)
        slides.append((path, case.mpp))
    strip = tmp_path / "strip.tif"
    one_strip(9000)(strip)  # no fault, but 243 MB where it is opened
    said, peak = look_at("there", [*slides, (strip, None)])
    assert said.pop() == ["", []]
    wrong = {
        case.name: got
        for case, got in zip(CASES, said, strict=True)
        if not fits(case, got)
    }
    assert wrong == {}
    assert peak < MOST_BYTES
    figure = f"{len(said)} of {len(CASES)}; the parent's peak {peak / 1e6:.0f} MB"
    record_property("figure", figure)


def fits(case: Case, said: tuple[str, list[str]]) -> bool:
    refusal, warnings = said
    if case.warned:
        return not refusal and any(re.search(case.said, text) for text in warnings)
    return bool(re.search(case.said, refusal))


def test_without_a_child_the_memory_would_be_the_parents(tmp_path: Path) -> None:
    path = tmp_path / "strip.tif"
    one_strip(9000)(path)
    _, peak = look_at("here", [(path, None)])
    assert peak > MOST_BYTES


@pytest.mark.parametrize(
    ("name", "room", "guard", "off"),
    [
        ("tags 0.005", scale, "POSSIBLE_MPP", (0, 1e9)),
        ("OME 50", scale, "POSSIBLE_MPP", (0, 1e9)),
        ("tags 0.08", scale, "USUAL_MPP", (0, 1e9)),
        ("tags 0.5 x 0.25", scale, "ANISOTROPY", 3),
        ("high level", tiff_layout, "level_doubts", lambda *_: ()),
        ("wider", tiff_layout, "check_extents", lambda *_: None),
    ],
)
def test_with_its_rule_off_a_case_goes_unnoticed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    room: object,
    guard: str,
    off: object,
) -> None:
    case = NAMED[name]
    path = tmp_path / f"slide{case.ending}"
    case.make(path)
    assert fits(case, said_of(path))
    monkeypatch.setattr(room, guard, off)
    if guard == "check_extents":  # the native reader has a second look
        monkeypatch.setattr(tiff_layout, "_check_extent", off)
    assert not fits(case, said_of(path))


def said_of(path: Path) -> tuple[str, list[str]]:
    try:
        return "", list(open_slide(path).info.warnings)
    except SlideError as error:
        return str(error), []
