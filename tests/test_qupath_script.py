"""The script that imports results into QuPath, as far as can be told without QuPath.

It is written in the part of Groovy that is Java, too, so that javac can look at it.
"""

import re
from pathlib import Path

import pytest

from wsi_pipeline.errors import ExportError
from wsi_pipeline.exporters import EXPORTERS
from wsi_pipeline.exporters.qupath_script import SCRIPT, publish_script
from wsi_pipeline.exporters.sheet import Frame, Sheet
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.results import Manifest, SlideFolder
from wsi_pipeline.run_files import rewrite_report
from wsi_pipeline.stages import detections

QUPATH = re.compile(r"^import (qupath\.[\w.]+)$", re.MULTILINE)
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


@pytest.fixture
def script(tmp_path: Path) -> str:
    return publish_script(tmp_path).read_text(encoding="ascii")


def code(script: str) -> str:
    """The script with its comments and the content of its texts taken out."""
    return STRING.sub('""', COMMENT.sub("", script))


def test_brackets_are_balanced_and_no_statement_is_torn(script: str) -> None:
    left = code(script)
    assert '"' not in left.replace('""', "")
    assert "'" not in left
    assert "$" not in script  # nothing that Groovy would fill in
    open_ones: list[str] = []
    for sign in re.findall(r"[()\[\]{}]", left):
        if sign in "([{":
            open_ones.append({"(": ")", "[": "]", "{": "}"}[sign])
        else:
            assert open_ones.pop() == sign
    assert open_ones == []
    # a line that begins with an operator is a statement of its own in Groovy
    assert not re.search(r"^\s*[-+*/&|?:.=<>]", left, re.MULTILINE)
    for line in left.splitlines():
        ends = line.strip()[-1:]
        assert ends in ("", *"{};(+") or line.startswith("import "), line


def test_every_class_of_qupath_that_is_named_is_imported(script: str) -> None:
    imported = {name.rpartition(".")[2] for name in QUPATH.findall(script)}
    left = code(script)
    named = set(re.findall(r"\b(?:Image|Path|Project|QP)\w*", left))
    assert named - {"PathIO"} == imported - {"PathIO"}
    assert imported <= set(re.findall(r"\b[A-Z]\w+", left.split("static", 1)[1]))


def test_it_asks_files_for_what_they_state(script: str) -> None:
    asked = set(re.findall(r'header\w*(?:\(\w+\))?\.get\("(\w+)"\)', script))
    frame = Frame("qupath", Box(0, 0, 9, 9))
    stated = Sheet("s", frame, Scale(0.5, 0.5), 0.25, (), ()).header()
    assert asked == {"frame", "frame_size_px", "offset_px", "mpp"} <= stated.keys()
    assert set(re.findall(r'facts\.get\("(\w+)"\)', script)) == {"slide"}
    assert "slide" in Manifest.__dataclass_fields__
    assert '"manifest.json"' in script
    names = {EXPORTERS.load("geojson").file_name, detections._NAME}
    assert names == set(re.findall(r'"(\w+\.geojson)"', script))
    assert 'nextName().equals("wsi_pipeline")' in script


def test_it_stops_before_anything_is_imported(script: str) -> None:
    stops = script.index("Nothing was imported")
    assert stops < script.index("hierarchy.addObjects(")
    assert stops < script.index("entry.saveImageData(")
    assert "server.getWidth() == width && server.getHeight() == height" in script


def test_script_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError):
        publish_script(tmp_path / "file")


def test_script_lies_beside_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "slide-1"
    folder.mkdir()
    facts = {"name": "m", "version": "1", "licence": "x", "limits": "y", "summary": "z"}
    Manifest("slide-1", "a.svs", "", "failed", model=facts).publish(SlideFolder(folder))
    rewrite_report(tmp_path)
    assert (tmp_path / SCRIPT).is_file()
