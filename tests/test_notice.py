"""What is made here says everywhere that it is for research, not for diagnosis."""

import subprocess
import sys
from pathlib import Path

import pytest

from wsi_pipeline.models.cards import shipped_models
from wsi_pipeline.reporting import RunFacts, row_of, write_report
from wsi_pipeline.results import NOTICE, Manifest, SlideFolder


def test_the_version_says_so() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "wsi_pipeline", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert NOTICE.lower().rstrip(".") in told.stdout


@pytest.mark.parametrize("status", ["done", "degraded", "failed"])
def test_every_manifest_says_so(tmp_path: Path, status: str) -> None:
    folder = SlideFolder(tmp_path)
    Manifest("a", "a.svs", "", status).publish(folder)
    assert NOTICE in (tmp_path / "manifest.json").read_text()


def test_every_report_says_so(tmp_path: Path) -> None:
    row = row_of(tmp_path, Manifest("a", "a.svs", "", "failed", "why"), reused=False)
    write_report(tmp_path, [row], RunFacts("m 1", "purpose", "licence", "0", "", 0.0))
    assert NOTICE in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", shipped_models())
def test_every_model_says_so_and_what_it_is_for(name: str) -> None:
    card = shipped_models()[name]
    assert "research use only" in card.limits.lower()
    assert "not for diagnosis" in card.limits.lower()
    assert len(card.intended_use) > 20
