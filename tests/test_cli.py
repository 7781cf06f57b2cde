"""The command as a user meets it, each call in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = [
    (), ("info",), ("run",), ("tile",), ("tissue",), ("select",), ("segment",),
    ("stitch",), ("export",), ("train",), ("train", "select"), ("train", "segment"),
    ("train", "screen"),
    ("evaluate",), ("evaluate", "masks"), ("evaluate", "segment"), ("synth",),
    ("synth-strips",), ("demo",), ("report",), ("doctor",),
    ("check-geojson",), ("annotations",),
    ("annotations", "show"), ("annotations", "convert"), ("annotations", "label"),
]  # fmt: skip
HEAVY = "torch", "dask", "distributed", "zarr"
SCRIPT = """
import sys
from wsi_pipeline.cli import main
sys.argv = ["wsi", *sys.argv[1:]]
try:
    main()
finally:
    print("LOADED", *[m for m in {heavy!r} if m in sys.modules], file=sys.stderr)
"""


def wsi(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "wsi_pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )


def one_line(result: subprocess.CompletedProcess) -> str:
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("wsi: ")
    return lines[0]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_reads_well_and_loads_nothing_heavy(verb):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(heavy=HEAVY), *verb, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"},
    )
    assert result.returncode == 0
    assert result.stderr.split() == ["LOADED"]
    assert "Usage: wsi" in result.stdout
    for line in result.stdout.splitlines():
        assert len(line) <= 100


def test_the_top_help_lists_every_verb():
    text = wsi("--help").stdout
    assert all(verb[0] in text for verb in VERBS if verb)
    assert "not for diagnosis" in text


def test_version_says_research_use_only():
    assert "research use only" in wsi("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "x.svs", "-o", "out", "--frobnicate"), "--frobnicate"),
        (("run", "x.svs"), "--out"),
        (("frob",), "frob"),
        (("run", "x.svs", "-o", "out"), "synthetic"),
        (("run", "x.svs", "-o", "out", "--model", "nope"), "unknown model 'nope'"),
        (("run", "x.svs", "-o", "out", "--model", "glas", "--memory", "lots"), "lots"),
        (("run", "x.svs", "-o", "out", "--config", "no.toml"), "no.toml"),
        (("run", "x.svs", "-o", "o", "--model", "glas", "--coverage", "some"), "some"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path, arguments, words):
    result = wsi(*arguments, cwd=tmp_path)
    assert words in one_line(result)
    assert result.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_missing_model_lists_the_models_with_what_each_is_for(tmp_path):
    line = one_line(wsi("run", "x.svs", "-o", "out", cwd=tmp_path))
    assert "synthetic:" in line
    assert "glas:" in line


def test_a_missing_slide_is_one_line(tmp_path):
    result = wsi("run", tmp_path / "no.svs", "-o", tmp_path / "o", "-m", "glas")
    assert "no.svs" in one_line(result)
    assert result.returncode == 1


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "a.png").write_text("")
    result = wsi("run", tmp_path / "a.png", "-o", tmp_path / "file" / "o", "-m", "glas")
    assert "choose another folder" in one_line(result)
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_interrupts_end_in_one_line_and_their_code(tmp_path, number, code, words):
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "wsi_pipeline",
            "synth",
            tmp_path / "s.tif",
            "--megapixels",
            "200",
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert "synth" in process.stderr.readline()
        process.send_signal(number)
        rest = process.stderr.read().strip().splitlines()
    assert process.returncode == code
    assert words in rest[-1]
    assert "Traceback" not in "".join(rest)
    assert list(tmp_path.rglob("*")) == []
