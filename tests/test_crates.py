"""RO-Crates of slides: what the profile asks for, and enough to do it all again."""

import copy
import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.small_runs import MODEL, manifest_sha256, small_run, small_slide
from wsi_pipeline.batch import run_batch
from wsi_pipeline.config import RunConfig
from wsi_pipeline.models.cards import ModelFolder, find_model, shipped_models
from wsi_pipeline.publishing import sha256_file
from wsi_pipeline.results import SlideFolder

pytestmark = pytest.mark.promise("R18")
ROOT = Path(__file__).resolve().parent.parent
VALIDATOR = ROOT / ".venv-crates" / "bin" / "python"

type Graph = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_slide(tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="module")
def folder(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> SlideFolder:
    """Results that are not those of the defaults."""
    config = RunConfig().updated("select", top_m=3)
    config = config.updated("export", min_area_um2=0.0, gzip=True)
    return small_run(slide, tmp_path_factory.mktemp("out"), config)


@pytest.fixture
def graph(folder: SlideFolder) -> Graph:
    return read_graph(folder.path)


def read_graph(folder: Path) -> Graph:
    document = json.loads((folder / "ro-crate-metadata.json").read_bytes())
    assert document["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    entities = document["@graph"]
    found = {entity["@id"]: entity for entity in entities}
    assert len(found) == len(entities)
    return found


def ids(value: Any) -> list[str]:
    """What a property refers to."""
    values = value if isinstance(value, list) else [value]
    return [v["@id"] for v in values if isinstance(v, dict)]


def lacks(graph: Graph, folder: Path) -> list[str]:
    """The MUSTs of RO-Crate 1.1 and Process Run Crate 0.5 that are not met."""
    wrong = []
    root, descriptor = graph["./"], graph["ro-crate-metadata.json"]
    wrong += [
        f"root has no {k}"
        for k in ("name", "description", "license")
        if not root.get(k)
    ]
    if root.get("datePublished", "")[:10].count("-") != 2:
        wrong.append("no date")
    if ids(descriptor["about"]) != ["./"]:
        wrong.append("the descriptor is not about the root")
    profiles = [i for i in ids(root.get("conformsTo")) if "/wfrun/process/" in i]
    if not profiles or graph[profiles[0]]["@type"] != "CreativeWork":
        wrong.append("no profile")
    actions = [e for e in graph.values() if e["@type"] == "CreateAction"]
    if not actions:
        wrong.append("no action")
    for action in actions:
        tools = [graph.get(i, {}).get("@type") for i in ids(action.get("instrument"))]
        if tools != ["SoftwareApplication"]:
            wrong.append("no instrument")
    for entity in graph.values():
        for key, value in entity.items():
            strange = [i for i in ids(value) if i not in graph and key != "conformsTo"]
            wrong += [f"{i} is not described" for i in strange]
        if entity["@type"] not in ("File", "Dataset") or entity["@id"] == "./":
            continue
        if entity["@id"] not in ids(root["hasPart"]):
            wrong.append(f"{entity['@id']} is no part of the root")
        if not entity["@id"].startswith("urn:sha256:"):
            path = folder / entity["@id"]
            if not path.exists():
                wrong.append(f"{entity['@id']} is not there")
            elif path.is_file() and entity["sha256"] != sha256_file(path):
                wrong.append(f"{entity['@id']} has another sha256")
    return wrong


def test_a_crate_meets_what_its_profile_asks_for(
    graph: Graph, folder: SlideFolder
) -> None:
    assert lacks(graph, folder.path) == []


SPOILT: dict[str, Callable[[Graph], object]] = {
    "licence": lambda g: g["./"].pop("license"),
    "profile": lambda g: g["./"].pop("conformsTo"),
    "instrument": lambda g: g["#run"].pop("instrument"),
    "date": lambda g: g["./"].pop("datePublished"),
    "part": lambda g: g["./"]["hasPart"].pop(),
    "entity": lambda g: g.pop("#model"),
    "sha256": lambda g: g["tissue.png"].update(sha256="0" * 64),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_crate_without_it_is_found_out(
    graph: Graph, folder: SlideFolder, name: str
) -> None:
    spoilt = copy.deepcopy(graph)
    SPOILT[name](spoilt)
    assert lacks(spoilt, folder.path) != []


def test_inputs_model_software_and_outputs_are_named_by_content(
    graph: Graph, folder: SlideFolder, slide: Path
) -> None:
    run = graph["#run"]
    used = {graph[i]["name"]: graph[i] for i in ids(run["object"])}
    assert used["slide.tif"]["sha256"] == sha256_file(slide)
    card = find_model(MODEL).card
    assert used["selector.safetensors"]["sha256"] == card.selector.sha256
    assert used["segmenter.safetensors"]["sha256"] == card.need_segmenter().sha256
    assert used["config.toml"]["sha256"] == sha256_file(folder.path / "config.toml")
    made = set(ids(run["result"]))
    assert {"slide.ome.zarr/", "segmentation.geojson.gz", "manifest.json"} < made
    (tool,) = ids(run["instrument"])
    needed = {graph[i]["name"] for i in ids(graph[tool]["softwareRequirements"])}
    assert {"torch", "numpy", "zarr", "openslide-bin"} < needed
    assert "pytest" not in needed
    assert str(slide.parent) not in json.dumps(graph)


def do_again(crate: Path, slides: Path, out: Path) -> SlideFolder:
    """Run what a crate tells of; only the slide is looked for, by its content."""
    graph = read_graph(crate)
    used = [graph[i] for i in ids(graph["#run"]["object"])]
    there = {sha256_file(path): path for path in slides.iterdir()}
    (slide,) = (there[e["sha256"]] for e in used if e.get("sha256") in there)
    weights = {e["sha256"] for e in used if e.get("description") == "weights"}
    (model,) = filter(lambda m: shas(m) == weights, map(find_model, shipped_models()))
    sheet = out.with_suffix(".csv")
    with sheet.open("w", newline="", encoding="utf-8") as stream:
        rows = ("sample", "slide"), (graph["./"]["identifier"], slide)
        csv.writer(stream).writerows(rows)
    (config,) = (e["@id"] for e in used if e.get("name") == "config.toml")
    told = RunConfig.from_toml(crate / config)
    result = run_batch([sheet], out, model, told)
    return SlideFolder(out / result.outcomes[0].manifest.slide_id)


def shas(model: ModelFolder) -> set[str]:
    return {model.card.selector.sha256, model.card.need_segmenter().sha256}


def test_a_run_from_the_crate_alone_has_the_same_manifest(
    folder: SlideFolder, slide: Path, tmp_path: Path
) -> None:
    crate, slides = tmp_path / "crate", tmp_path / "slides"
    crate.mkdir()
    slides.mkdir()
    for name in ("ro-crate-metadata.json", "config.toml"):
        shutil.copy(folder.path / name, crate)
    shutil.copy(slide, slides)
    (slides / "other.tif").write_bytes(b"another slide")
    again = do_again(crate, slides, tmp_path / "again")
    assert manifest_sha256(again) == manifest_sha256(folder)


@pytest.mark.faults
def test_the_validator_of_the_profile_finds_no_fault(
    folder: SlideFolder, tmp_path: Path
) -> None:
    if not VALIDATOR.is_file():
        pytest.skip(f"no validator in {VALIDATOR.parent.parent.name}: `make faults`")
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copytree(folder.path, broken, dirs_exist_ok=True)
    crate = broken / "ro-crate-metadata.json"
    crate.write_text(crate.read_text().replace('"instrument"', '"error"'))
    words = [VALIDATOR, ROOT / "tests" / "faults" / "validate_crates.py"]
    for path, wrong in ((folder.path, 0), (broken, 1)):
        found = subprocess.run(
            [*words, path], capture_output=True, text=True, check=False
        )
        assert found.returncode == wrong, found.stdout + found.stderr
        assert f"{1 - wrong} of 1 crates are valid" in found.stdout
