"""What workflow engines, notebooks and images are given."""

import html
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
    # names that a shell, YAML and the engine would take for something else
    names = "$(touch canary) it's {sample}.tif", "; touch canary; `touch canary`.tif"
    for seed, name in enumerate(names, 1):
        write_truthful_slide(tmp_path / name, seed=seed, megapixels=1, workers=1)
    sheet = tmp_path / "it's $(touch canary).csv"
    sheet.write_text(
        "sample,slide\n"
        + "".join(
            f'{sample},"{name}"\n'
            for sample, name in zip(("-one", "two"), names, strict=True)
        )
    )
    out = tmp_path / "out; touch canary"
    command = [
        sys.executable, "-m", "snakemake", "-s", ROOT / "workflows" / "Snakefile",
        "--cores", "2", "--directory", tmp_path,
        "--config", f"samplesheet={sheet}", "model=synthetic", f"out={out}",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert result.returncode == 0, result.stderr
    for sample in ("-one", "two"):
        assert (out / sample / "segmentation.geojson").is_file()
    report = (out / "report.html").read_text()
    for name in names:
        assert html.escape(name, quote=False).replace("'", "&#39;") in report
    assert not list(tmp_path.rglob("canary"))


def test_snakemake_makes_no_folder_of_a_name_that_leaves_the_results(tmp_path):
    sheet = tmp_path / "slides.csv"
    sheet.write_text("sample,slide\n../../left,s.tif\n")
    (tmp_path / "s.tif").write_bytes(b"")
    command = [
        sys.executable, "-m", "snakemake", "-s", ROOT / "workflows" / "Snakefile",
        "--cores", "1", "--directory", tmp_path / "here" / "there",
        "--config", f"samplesheet={sheet}", "model=synthetic", "out=out",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "'../../left' is no name for a sample" in result.stderr
    made = {path.name for path in tmp_path.rglob("*")}
    assert made.isdisjoint({"left", "out"})


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
