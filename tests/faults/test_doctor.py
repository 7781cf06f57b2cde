"""`wsi doctor` names what is missing, old or full, and asks nothing of the network."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest

from wsi_pipeline import doctor
from wsi_pipeline.doctor import ADVISORIES, LIBRARIES, Finding, examine, exit_code

pytestmark = pytest.mark.promise("R19")
OFFLINE = """
import sys
def refuse(event, _):
    if event.startswith("socket."):
        raise SystemExit(f"asked the network: {event}")
sys.addaudithook(refuse)
from wsi_pipeline.cli import main
sys.argv = ["wsi", "doctor", sys.argv[1], "--json"]
main()
"""


def test_this_machine_is_fit_and_nothing_is_asked_of_the_network(
    tmp_path: Path,
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE, tmp_path / "not" / "made"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    levels = {row["name"]: row["level"] for row in orjson.loads(result.stdout)}
    assert "error" not in levels.values()
    assert {*ADVISORIES, *LIBRARIES, "numba", "memory", "results"} <= set(levels)
    assert list(tmp_path.iterdir()) == []


def errors(findings: list[Finding]) -> dict[str, Finding]:
    assert exit_code(findings) == any(f.level == "error" for f in findings)
    return {f.name: f for f in findings if f.level == "error"}


@pytest.mark.parametrize("name", ADVISORIES)
def test_a_version_with_a_known_advisory_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert list(doctor._packages())
    assert not errors(list(doctor._packages()))
    old = {name: "0.1"}
    monkeypatch.setattr(doctor, "version", lambda n: old.get(n) or version(n))
    found = errors(list(doctor._packages()))
    assert set(found) == {name}
    assert ADVISORIES[name] in found[name].cure
    assert found[name].cure.startswith(f"pip install '{name}")


def test_a_package_that_is_missing_is_an_error_and_an_extra_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        if name in ("safetensors", "snakemake"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", missing)
    assert set(errors(list(doctor._packages()))) == {"safetensors"}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_inside_a_wheel_that_is_old_or_unknown_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    known = doctor._library_versions()
    assert not errors(list(doctor._libraries()))
    for wrong in ({name: "1.0"}, {name: "unknown"}):
        monkeypatch.setattr(doctor, "_library_versions", lambda w=wrong: known | w)
        assert set(errors(list(doctor._libraries()))) == {name}


Usage = namedtuple("Usage", "total used free")


def test_full_disks_and_places_that_cannot_be_written_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert errors(list(doctor._disk("results", tmp_path / "file" / "out")))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert errors(list(doctor._disk("results", tmp_path)))
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    (full,) = doctor._disk("results", tmp_path)
    assert full.level == "warning"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 10**12))
    monkeypatch.setattr(doctor, "LEAST_FILES", 2**63)
    (crowded,) = doctor._disk("results", tmp_path)
    assert (crowded.level, "more files" in crowded.found) == ("warning", True)


def test_a_compiler_that_fails_or_forgets_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [f.level for f in doctor._compiler()] == ["ok"]

    def answer(value: int, kept: str | None) -> None:
        stats = SimpleNamespace(cache_path=kept)

        class Compiled:
            def __init__(self, _: object) -> None:
                self.stats = stats

            def __call__(self, _: int) -> int:
                return value

        module = SimpleNamespace(compiled=Compiled)
        monkeypatch.setattr(doctor, "import_module", lambda _: module)

    answer(42, None)
    assert [f.level for f in doctor._compiler()] == ["warning"]
    answer(41, "there")
    assert [f.level for f in doctor._compiler()] == ["error"]
    monkeypatch.setattr(doctor, "import_module", lambda name: 1 / 0)
    assert "division" in errors(list(doctor._compiler()))["numba"].found


def test_libraries_that_cannot_be_loaded_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> None:
        raise OSError(f"no shared library of {name}")

    monkeypatch.setattr(doctor, "import_module", fail)
    assert set(errors(list(doctor._libraries()))) == {"image libraries"}
    assert set(errors(list(doctor._device()))) == {"torch"}


def test_little_memory_and_other_encodings_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "total_memory_bytes", lambda: 2**30)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    warned = {f.name for f in examine(tmp_path) if f.level == "warning"}
    assert {"memory", "names of files"} <= warned
