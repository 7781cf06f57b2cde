"""What workflow engines, notebooks and images are given."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT
from wsi_pipeline.demo import write_truthful_slide


def test_snakemake_runs_one_slide_per_job_and_one_report(tmp_path):
    for seed in (1, 2):
        write_truthful_slide(
            tmp_path / f"s{seed}.tif", seed=seed, megapixels=1, workers=1
        )
    sheet = tmp_path / "slides.csv"
    sheet.write_text("sample,slide\none,s1.tif\ntwo,s2.tif\n")
    command = [
        sys.executable, "-m", "snakemake", "-s", ROOT / "workflows" / "Snakefile",
        "--cores", "2", "--directory", tmp_path,
        "--config", f"samplesheet={sheet}", "model=synthetic", f"out={tmp_path}/out",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert result.returncode == 0, result.stderr
    for sample in ("one", "two"):
        assert (tmp_path / "out" / sample / "segmentation.geojson").is_file()
    report = (tmp_path / "out" / "report.html").read_text()
    assert "s1.tif" in report
    assert "s2.tif" in report


@pytest.mark.filterwarnings("default")  # zmq and asyncio warn among themselves
def test_the_notebook_runs_from_top_to_bottom():
    notebook = nbformat.read(ROOT / "notebooks" / "demo.ipynb", as_version=4)
    NotebookClient(notebook, timeout=400, kernel_name="python3").execute()
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )
    assert float(re.search(r"mIoU (\d\.\d+)", text)[1]) > 0.4
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3


def test_the_image_installs_the_package_and_enters_at_wsi():
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["wsi"]' in lines
    copied = [
        word for line in lines if line.startswith("COPY") for word in line.split()
    ]
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        assert name in copied
        assert (ROOT / name).is_file()
    assert any("--constraint constraints.txt ." in line for line in lines)


def test_nothing_in_the_repository_names_a_registry_or_this_machine():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of files")
    listed = subprocess.run(
        [git, "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    here = "/" + "work/"
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".safetensors", ".png"} or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        assert "pythonhosted" not in text.replace('"pythonhosted"', ""), name
        assert here not in text, name
