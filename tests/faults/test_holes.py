"""R2: a lost or damaged chunk is an error, never tissue or background."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import google_crc32c
import numpy as np
import orjson
import pytest
import zarr
from typer.testing import CliRunner

from tests.faults.victims import CONFIG, make_slides
from tests.slides import NumberSlide
from tests.test_tiling_jpeg import COPY, YCBCR, slide_of
from wsi_pipeline import chunks, cli, codecs, verifying
from wsi_pipeline.batch import run_batch
from wsi_pipeline.classes import NOT_COMPUTED
from wsi_pipeline.config import TileOptions
from wsi_pipeline.errors import ConfigError, PyramidError
from wsi_pipeline.models.cards import find_model
from wsi_pipeline.publishing import list_files, publish_json
from wsi_pipeline.pyramid import MaskPyramid, Multiscale, Pyramid
from wsi_pipeline.results import Manifest, SlideFolder, checksums
from wsi_pipeline.tiling import tile_slide
from wsi_pipeline.verifying import verify_results

pytestmark = pytest.mark.promise("R2")
SMALL = TileOptions(block_px=512, chunk_px=256, workers=1)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> SlideFolder:
    """Results of a slide of half a megapixel."""
    folder = tmp_path_factory.mktemp("results")
    slides = make_slides(folder, 1)
    result = run_batch(slides, folder / "out", find_model("synthetic"), CONFIG)
    assert result.exit_code == 0
    return SlideFolder(folder / "out" / result.outcomes[0].manifest.slide_id)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Pyramid:
    """A pyramid whose chunks are the slide's own JPEG tiles."""
    folder = tmp_path_factory.mktemp("copied")
    slide = slide_of(folder / "s.tif", 1000, 700, **YCBCR)
    return tile_slide(slide, folder / "a.zarr", COPY)


@dataclass(frozen=True)
class Mutation:
    """A change of one shard: `kind`, from a byte on."""

    shard: Path
    kind: str
    start: int = 0
    length: int = 0

    def apply(self) -> None:
        if self.kind == "delete":
            self.shard.unlink()
            return
        data = bytearray(self.shard.read_bytes())
        if self.kind == "truncate":
            del data[self.start :]
        elif self.kind == "zero":
            data[self.start : self.start + self.length] = bytes(self.length)
        else:
            data[self.start] ^= 1 << self.length
        self.shard.write_bytes(data)


def chunks_of(shard: Path) -> list[tuple[int, int]]:
    """Start and length of each chunk that a shard holds; its index at last."""
    data = shard.read_bytes()
    for side in (1, 2, 4, 8, 16):
        size = 16 * side * side + 4
        index = data[-size:-4]
        if google_crc32c.value(index) == int.from_bytes(data[-4:], "little"):
            table = np.frombuffer(index, "<u8").reshape(-1, 2)
            held = [(int(a), int(n)) for a, n in table if a != 2**64 - 1]
            return [*held, (len(data) - size, size)]
    raise ValueError(shard)


def mutations(stores: list[Multiscale], flips: int, seed: int = 0) -> list[Mutation]:
    """For each chunk: zeros, a cut, some flipped bits; for each shard: its loss."""
    chance, found = random.Random(seed), []  # noqa: S311  # places, not secrets
    for store in stores:
        for level in range(len(store.levels)):
            for shard in sorted(p for p in list_files(store.path / str(level) / "c")):
                found.append(Mutation(shard, "delete"))
                for start, length in chunks_of(shard):
                    found.append(Mutation(shard, "zero", start, length))
                    found.append(Mutation(shard, "truncate", start + length // 2))
                    for _ in range(flips):
                        place = start + chance.randrange(length)
                        bit = chance.randrange(8)
                        found.append(Mutation(shard, "flip", place, bit))
    return found


def level_of(stores: list[Multiscale], shard: Path) -> Callable[[], np.ndarray]:
    for store in stores:
        if shard.is_relative_to(store.path):
            name = shard.relative_to(store.path).parts[0]
            if name.isdigit():
                level = int(name)
                return lambda: store.read_level(store.levels[level].box, level)
    raise ValueError(shard)


def check(
    stores: list[Multiscale], found: list[Mutation], verify: Callable[[], set[str]]
) -> Iterator[tuple[Mutation, bool, bool]]:
    """Each mutation: whether verify names the file, whether reading raises."""
    for mutation in found:
        whole = mutation.shard.read_bytes()
        read = level_of(stores, mutation.shard)
        expected = read()
        mutation.apply()
        try:
            named = any(str(mutation.shard).endswith(name) for name in verify())
            try:
                # a bit of a zstd frame that stands for nothing changes nothing
                raised = bool((read() == expected).all()) and mutation.kind == "flip"
            except PyramidError:
                raised = True
            yield mutation, named, raised
        finally:
            mutation.shard.write_bytes(whole)


def stores_of(folder: SlideFolder) -> list[Multiscale]:
    image = Pyramid(folder.pyramid)
    names = sorted(p.name for p in image.labels_path.iterdir() if p.is_dir())
    return [*(image.masks(name) for name in names), image]


def named(folder: SlideFolder) -> set[str]:
    """Files that `wsi verify` names."""
    findings = verify_results(folder.path, jobs=1).findings
    return {f.path.partition("/")[2] for f in findings}


def test_each_of_some_mutations_is_found(results):
    stores = stores_of(results)
    assert named(results) == set()
    some = mutations(stores, 1)[::12]
    assert {m.kind for m in some} == {"delete", "zero", "truncate", "flip"}
    for mutation, by_verify, by_reader in check(stores, some, lambda: named(results)):
        assert (by_verify, by_reader) == (True, True), mutation
    assert named(results) == set()


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_each_of_a_thousand_mutations_is_found(results, record_property):
    stores = stores_of(results)
    found = mutations(stores, 60)
    assert len(found) >= 1000
    seen = list(check(stores, found, lambda: named(results)))
    assert [
        m for m, by_verify, by_reader in seen if not (by_verify and by_reader)
    ] == []
    record_property("measured", f"{len(seen)} of {len(seen)} mutations found by both")


def test_a_flipped_bit_of_a_copied_tile_raises(copied):
    found = [m for m in mutations([copied], 6) if m.kind == "flip"]
    assert len(found) > 80
    for mutation, _, raised in check([copied], found, set):
        assert raised, mutation


def test_without_its_checksum_a_flipped_jpeg_is_other_pixels(copied, monkeypatch):
    """The negative control."""
    monkeypatch.setattr(chunks, "_unsealed", lambda data: data[:-4])
    found = [m for m in mutations([copied], 6) if m.kind == "flip"]
    assert not all(raised for _, _, raised in check([copied], found, set))


def test_without_its_checksum_a_flipped_zstd_chunk_is_other_pixels(
    tmp_path, monkeypatch
):
    """The negative control."""

    class Bare(codecs.ZstdEncoder):
        def __init__(self, level: int, checksum: bool) -> None:
            super().__init__(level=level, checksum=False)

    monkeypatch.setattr(codecs, "ZstdEncoder", Bare)
    made = tile_slide(NumberSlide.of(700, 500), tmp_path / "a.zarr", SMALL)
    found = [m for m in mutations([made], 6) if m.kind == "flip"]
    assert not all(raised for _, _, raised in check([made], found, set))


def test_without_hashes_verify_finds_no_flipped_bit(results, monkeypatch):
    """The negative control."""
    manifest = Manifest.load(results)
    digests = {results.path / n: f["sha256"] for n, f in manifest.files.items()}
    stores = stores_of(results)
    (flip, *_) = (m for m in mutations(stores, 1) if m.kind == "flip")
    monkeypatch.setattr(verifying, "sha256_file", digests.__getitem__)
    ((_, by_verify, _),) = check(stores, [flip], lambda: named(results))
    assert not by_verify


def never_written(shard: Path) -> None:
    """Make a shard in which the first chunk was never written."""
    data = shard.read_bytes()
    start, _ = chunks_of(shard)[-1]
    index = np.frombuffer(data[start:-4], "<u8").copy()
    index[:2] = 2**64 - 1
    crc = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(data[:start] + index.tobytes() + crc)


def test_a_chunk_that_was_never_written_inside_a_shard_is_found(results, tmp_path):
    folder = SlideFolder(tmp_path / "out" / results.slide_id)
    shutil.copytree(results.path, folder.path)
    pyramid = Pyramid(folder.pyramid)
    never_written(pyramid.path / "0" / "c" / "0" / "0" / "0")
    manifest = replace(Manifest.load(folder), files=checksums(folder))
    manifest.publish(folder)
    publish_json(folder.crate, verifying.describe_slide(folder, manifest))
    (found,) = verify_results(folder.path, jobs=1).findings
    assert (found.kind, found.detail) == ("incomplete", "1 chunks were never written")
    with pytest.raises(PyramidError, match="was not written"):
        pyramid.read_level(pyramid.levels[0].box, 0)
    # the negative control: zarr itself reads it as black
    assert zarr.open_array(pyramid.path / "0", mode="r")[:, :8, :8].max() == 0


def test_plain_zarr_shows_255_where_a_label_lost_a_chunk(results, tmp_path):
    out = tmp_path / "coverage"
    shutil.copytree(results.label("coverage"), out)
    (out / "0" / "c" / "0" / "0").unlink()
    array = zarr.open_array(out / "0", mode="r")
    assert (array[:16, :16] == NOT_COMPUTED).all()
    label = MaskPyramid(out)
    with pytest.raises(PyramidError, match="damaged"):
        label.read_level(label.levels[0].box, 0)


def test_files_that_are_missing_extra_or_changed_are_named(results, tmp_path):
    folder = SlideFolder(tmp_path / "out" / results.slide_id)
    shutil.copytree(results.path.parent, folder.path.parent)
    folder.tissue.unlink()
    (folder.path / "notes.txt").write_text("mine")
    for path in (folder.crate, folder.run):
        path.write_bytes(path.read_bytes().replace(b"done", b"dono", 1) + b"\n")
    found = verify_results(folder.path.parent)
    name = folder.slide_id
    assert {(f.path, f.kind) for f in found.findings} == {
        (f"{name}/tissue.png", "missing"),
        (f"{name}/notes.txt", "extra"),
        (f"{name}/run.json", "changed"),
        (f"{name}/ro-crate-metadata.json", "changed"),
    }
    assert found.exit_code == 3
    shutil.rmtree(folder.path)
    (lost,) = verify_results(folder.path.parent).findings
    assert (lost.path, lost.kind) == (f"{name}/manifest.json", "missing")


def test_the_verb_says_what_it_found_by_its_exit_code(results, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(results.path.parent, out)
    runner = CliRunner()
    clean = runner.invoke(cli.app, ["verify", str(out), "--jobs", "1"])
    assert (clean.exit_code, clean.stdout.endswith(" 0 findings\n")) == (0, True)
    (out / results.slide_id / "overlay.png").unlink()
    found = runner.invoke(cli.app, ["verify", str(out), "--json"])
    assert found.exit_code == 3
    (finding,) = orjson.loads(found.stdout)["findings"]
    assert finding["path"] == f"{results.slide_id}/overlay.png"
    assert finding["kind"] == "missing"


def test_a_folder_without_results_is_no_clean_one(tmp_path):
    with pytest.raises(ConfigError, match="no results"):
        verify_results(tmp_path)


@pytest.mark.parametrize("stores", [8, pytest.param(100, marks=pytest.mark.faults)])
def test_nothing_is_found_in_clean_stores(tmp_path, stores, record_property):
    chance = np.random.default_rng(0)
    for number in range(stores):
        w, h = (int(n) for n in chance.integers(1, 1500, 2))
        options = SMALL.model_copy(update={"ome_zarr": ("0.5", "0.4")[number % 2]})
        made = tile_slide(NumberSlide.of(w, h), tmp_path / f"{number}.zarr", options)
        for level in range(len(made.levels)):
            assert verifying._missing_chunks(made.path / str(level)) == 0
            made.read_level(made.levels[level].box, level)
    record_property("measured", f"0 false alarms on {stores} clean stores")
