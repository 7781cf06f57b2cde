"""The same input gives the same bytes; what differs by nature is told apart."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.small_runs import BLOCKS, SMALL, manifest_sha256, small_run, small_slide
from wsi_pipeline import results as results_module
from wsi_pipeline import tiling
from wsi_pipeline.config import RunConfig
from wsi_pipeline.repeating import put_together, set_apart, split_config, to_toml
from wsi_pipeline.results import Manifest, SlideFolder

ROOT = Path(__file__).resolve().parent.parent
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.dictionaries(st.sampled_from("abcdef"), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_slide(tmp_path_factory.mktemp("slide"))


@pytest.fixture(scope="module")
def first(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> SlideFolder:
    """One worker, in order."""
    told = SMALL.updated("tile", workers=1)
    return small_run(slide, tmp_path_factory.mktemp("first"), told)


def elsewhere(slide: Path, folder: Path, scheduler: str, workers: int) -> str:
    """A run in another process, folder, time zone, locale and umask."""
    copy = folder / "dérivé" / slide.name
    copy.parent.mkdir()
    copy.write_bytes(slide.read_bytes())
    words = copy, folder / "other out", scheduler, str(workers)
    found = subprocess.run(
        [sys.executable, "-m", "tests.small_runs", *words],
        env=os.environ | {"TZ": "Pacific/Chatham", "LC_ALL": "C", "PYTHONUTF8": "1"},
        umask=0o077,
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return found.stdout.split()[-1]


def shuffle_blocks(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    def shuffled(*args: object) -> Iterator[tuple[int, list[object]]]:
        for level, blocks in in_order(*args):
            order = np.random.default_rng(seed).permutation(len(blocks))
            yield level, [blocks[i] for i in order]

    in_order = tiling._rounds
    monkeypatch.setattr(tiling, "_rounds", shuffled)


@pytest.mark.promise("R10")
def test_four_runs_have_one_manifest(
    slide: Path, first: SlideFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(BLOCKS) == 2
    found = [manifest_sha256(first), elsewhere(slide, tmp_path, "processes", 2)]
    shuffle_blocks(monkeypatch, 5)
    for workers in (2, 4):
        out = tmp_path / str(workers)
        folder = small_run(slide, out, SMALL.updated("tile", workers=workers))
        found.append(manifest_sha256(folder))
    assert len(set(found)) == 1, found


@pytest.mark.faults
@pytest.mark.promise("R10")
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_five_repeats_have_one_manifest(
    slide: Path,
    first: SlideFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    workers: int,
) -> None:
    found = {manifest_sha256(first), elsewhere(slide, tmp_path, scheduler, workers)}
    told = SMALL.updated("tile", scheduler=scheduler, workers=workers)
    for repeat in range(4):
        with monkeypatch.context() as patch:
            shuffle_blocks(patch, repeat)
            folder = small_run(slide, tmp_path / str(repeat), told)
        found.add(manifest_sha256(folder))
    assert len(found) == 1


@pytest.mark.promise("R10")
def test_times_and_memory_would_make_two_manifests_of_equal_runs(
    first: SlideFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.load(first)
    assert manifest is not None
    slower = {"patches_per_s": 0.1, "peak_allocated_bytes": 1}
    facts = manifest.facts | {"select": {**manifest.facts["select"], **slower}}
    other = replace(manifest, facts=facts, seconds={}, peak_bytes={}, ended="later")
    assert other.documents()[0] == manifest.documents()[0]
    monkeypatch.setattr(results_module, "split_facts", lambda facts: (facts, {}))
    assert other.documents()[0] != manifest.documents()[0]


def test_nothing_in_the_manifest_names_a_folder_a_time_or_an_amount_of_memory(
    slide: Path, first: SlideFolder
) -> None:
    text = first.path.joinpath("manifest.json").read_text()
    assert str(slide.parent) not in text
    assert str(first.path.parent) not in text
    assert not {"seconds", "peak_bytes", "ended"} & orjson.loads(text).keys()
    for word in ("peak", "patches_per_s", "budget", "workers", "gpu_memory"):
        assert f'"{word}' not in text
    told = orjson.loads(first.path.joinpath("run.json").read_bytes())
    assert told["seconds"].keys() == told["peak_bytes"].keys()
    assert told["config"]["tile"]["workers"] == 1


def test_a_manifest_is_read_back_whole(first: SlideFolder) -> None:
    manifest = Manifest.load(first)
    assert manifest is not None
    (file,) = manifest.facts["tile"]["inputs"]
    assert file["name"] == "slide.tif"
    assert manifest.facts["select"]["peak_allocated_bytes"] > 0
    assert manifest.config["segment"]["memory"] == 2 << 30
    assert manifest.software["numpy"]


def test_a_manifest_without_its_run_is_none(first: SlideFolder, tmp_path: Path) -> None:
    copy = SlideFolder(tmp_path)
    for place in (first.manifest, first.run):
        data = Path(place).read_bytes()
        (tmp_path / place.name).write_bytes(data)
    assert Manifest.load(copy) == Manifest.load(first)
    Path(copy.run).unlink()
    assert Manifest.load(copy) is None


@given(told=st.dictionaries(st.sampled_from("abcdef"), JSON, max_size=6))
def test_what_is_set_apart_comes_together_again(told: dict[str, object]) -> None:
    rest, taken = set_apart(told, frozenset("abc"))
    assert put_together(rest, taken) == told
    assert not rest.keys() & set("abc")


@given(
    st.builds(
        dict,
        model=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        mpp=st.none() | st.floats(1e-9, 1e9),
        export=st.builds(dict, min_area_um2=st.floats(0, 1e300), gzip=st.booleans()),
        tile=st.builds(dict, workers=st.integers(0, 2**62)),
    )
)
def test_a_config_is_the_same_after_toml(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    config = RunConfig(**values)
    path = tmp_path_factory.mktemp("toml") / "run.toml"
    path.write_text(to_toml(config.model_dump(mode="json")), encoding="utf-8")
    assert RunConfig.from_toml(path) == config


def test_the_config_beside_the_results_is_the_one_that_decided_them(
    first: SlideFolder,
) -> None:
    manifest = Manifest.load(first)
    assert manifest is not None
    again = RunConfig.from_toml(Path(first.config)).model_dump(mode="json")
    assert split_config(again)[0] == split_config(manifest.config)[0]
    assert again["tile"]["workers"] == 0  # left out, as all that is free
