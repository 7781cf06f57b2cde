"""Slides that are selected from by features of their patches, from end to end."""

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.models import selector_model, small_model
from tests.test_features import write_hdf5, write_zarr
from wsi_pipeline.annotations import read_annotations
from wsi_pipeline.batch import run_batch
from wsi_pipeline.cli import app
from wsi_pipeline.config import RunConfig
from wsi_pipeline.demo import write_truthful_slide
from wsi_pipeline.errors import ConfigError, RegionError, WsiError
from wsi_pipeline.models.cards import ModelFolder, find_model, write_card
from wsi_pipeline.models.scoring import load_selector
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.pipeline import run_stage
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.region_store import RegionStore
from wsi_pipeline.regions import PatchGrid, Selection
from wsi_pipeline.results import Manifest, SlideFolder
from wsi_pipeline.samplesheet import read_samplesheet
from wsi_pipeline.stages import SlideRun
from wsi_pipeline.training.label_options import BagOptions
from wsi_pipeline.training.labelled_bags import open_bags
from wsi_pipeline.training.stored_bags import FeatureBag

F, PX, COUNT = 6, 64, 20
KEPT = RunConfig().updated("stitch", keep_predictions=True)
TRIDENT = {"patch_size": PX, "patch_size_level0": 2 * PX, "target_magnification": 10}
"""Patches of 64 px at 1 um/px; as the slide's level 0 has 0.5."""


def arrays(seed: int = 0, **changes: NDArray[np.generic]) -> dict[str, NDArray]:
    """Features and corners in no order; the last patch sticks out of the slide."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(COUNT, F)).astype(np.float32)
    places = np.random.default_rng(9).permutation(40)[:COUNT]
    corners = np.stack([places % 20, places // 20], axis=1) * 130 + 5
    corners[-1] = 2700, 300
    return {"features": values, "coords": corners} | changes


def write(path: Path, data: dict[str, NDArray], **facts: object) -> Path:
    make = write_zarr if path.suffix == ".zarr" else write_hdf5
    return make(path, data, TRIDENT | facts, 4)


def model_of(folder: Path, encoder: str = f"features:{F}", **shape) -> ModelFolder:
    """A selector alone, with random weights."""
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = SelectorNet(SelectorShape(encoder, 16, 2, 8, 32, **shape), ("one",))
    return selector_model(folder, net, patch_px=PX, top_m=4, mpp=1.0)


def with_segmenter(model: ModelFolder) -> ModelFolder:
    whole = small_model(model.path).card
    card = whole.model_copy(update={"selector": model.card.selector})
    write_card(model.path, card)
    return ModelFolder(model.path, card)


def assert_selected(
    folder: SlideFolder,
    model: ModelFolder,
    data: dict[str, NDArray],
    level0_mpp: float | None = None,
) -> Selection:
    """The results are what the net makes of the features, computed in float64 here."""
    found = Selection.load(folder.selection)
    order = np.lexsort(data["coords"].T)
    corners = data["coords"][order]
    np.testing.assert_array_equal(found.grid.corners, corners)
    np.testing.assert_array_equal(PatchGrid.load(folder.patches).corners, corners)
    assert (found.grid.size_px, found.grid.patch_px, found.grid.mpp) == (128, PX, 1.0)
    net = load_selector(model).double()
    places = torch.from_numpy(corners * level0_mpp) if level0_mpp else None
    with torch.no_grad():
        x = net.embed(torch.from_numpy(data["features"][order]).double())
        logits = net.logits(x, places)
    # float32 and the sums of 16 products of numbers of order 1
    np.testing.assert_allclose(found.logits, logits.numpy(), rtol=0, atol=1e-5)
    ranked = logits.softmax(0).mean(1).argsort(descending=True).numpy()
    assert np.argsort(found.rank).tolist() == ranked.tolist()
    assert np.flatnonzero(found.chosen).tolist() == sorted(ranked[:4].tolist())
    return found


def copy(folder: Path, target: Path) -> Path:
    subprocess.run(["cp", "-r", folder, target], check=True)
    return target


@dataclass(frozen=True)
class Made:
    """A batch of one slide: its sheet, features, model and results."""

    sheet: Path
    features: Path
    model: ModelFolder
    out: Path

    @property
    def folder(self) -> SlideFolder:
        return SlideFolder(self.out / "a")

    def copied(self, root: Path) -> "Made":
        """The same in a place of its own."""
        new = copy(self.sheet.parent, root / "batch")
        return replace(
            self,
            sheet=new / self.sheet.name,
            features=new / self.features.name,
            out=copy(self.out, root / "out"),
        )


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "slide.tif"
    return write_truthful_slide(path, seed=11, megapixels=1, workers=1)[0]


@pytest.fixture(scope="module")
def made(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("batch")
    (root / "sheets").mkdir()
    features = write(root / "sheets" / "a.zarr", arrays())
    sheet = root / "sheets" / "sheet.csv"
    sheet.write_text(f"sample,slide,features,label\na,{slide}, a.zarr ,1\n")
    model = with_segmenter(model_of(root / "model"))
    result = run_batch([sheet], root / "out", model, KEPT)
    manifest = result.outcomes[0].manifest
    assert manifest.status == "done", manifest.reason
    return Made(sheet, features, model, root / "out")


# the samplesheet and `wsi run`


def test_a_slide_of_the_sheet_is_selected_from_its_features(made: Made) -> None:
    assert_selected(made.folder, made.model, arrays())
    facts = Manifest.load(made.folder).facts
    assert facts["select"]["reading"] == {"features": "a.zarr", "width": F}
    assert facts["tissue"]["patches"] == facts["select"]["patches"] == COUNT
    assert facts["tissue"]["tissue_mm2"] > 0


def test_all_that_follows_is_about_the_patches_of_the_file(made: Made) -> None:
    folder = made.folder
    found = Selection.load(folder.selection)
    shapes = [a.geometry for a in read_annotations(folder.path / "attention.geojson")]
    w, h = Pyramid(folder.pyramid).source.size_px
    for (x, y), shape in zip(found.grid.corners.tolist(), shapes, strict=True):
        assert shape.bounds == (x, y, min(x + 128, w), min(y + 128, h))
    heat = np.asarray(zarr.open_group(folder.heat_map, mode="r")["0"])
    assert np.float32(1) in heat
    assert set(heat[heat > 0]) <= set(np.float32(found.percentile))
    for picture in (folder.attention, folder.top_patches, folder.overlay):
        assert picture.is_file()
    boxes, _ = RegionStore(folder.predictions).boxes()
    for patch in np.flatnonzero(found.chosen):
        box = found.grid.box(int(patch))
        assert any(box.intersect(region).area_px for region in boxes)


def test_changed_features_select_anew_and_do_not_tile(
    made: Made, tmp_path: Path
) -> None:
    mine = made.copied(tmp_path)
    tiled = mine.folder.record("tile")

    def run() -> bool:
        (outcome,) = run_batch([mine.sheet], mine.out, mine.model, KEPT).outcomes
        assert outcome.manifest.status == "done"
        return outcome.reused

    assert run()
    write(mine.features, arrays())  # the same once more, in new files
    assert run()
    write(mine.features, arrays(1))
    assert not run()
    assert_selected(mine.folder, mine.model, arrays(1))
    assert mine.folder.record("tile") == tiled


BAD = {
    "gone": (None, "cannot be read|holds no"),
    "short": ({"features": np.ones((COUNT, 5), np.float32)}, "of length 5.*reads 6"),
    "far": ({"coords": np.full((COUNT, 2), 5000)}, "outside the slide"),
    "nan": ({"features": np.full((COUNT, F), np.nan, np.float32)}, "not finite"),
}


def test_a_bad_file_fails_its_slide_alone(
    made: Made, slide: Path, tmp_path: Path
) -> None:
    rows = ["sample,slide,features"]
    for name, (changes, _) in BAD.items():
        path = tmp_path / f"{name}.zarr"
        if changes is None:
            path.mkdir()
        else:
            write(path, arrays(**changes))
        rows.append(f"{name},{slide},{path.name}")
    (tmp_path / "pickled.pt").write_bytes(b"x")
    rows += [f"pickled,{slide},pickled.pt", f"a,{slide},{made.features}"]
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("\n".join(rows))
    out = tmp_path / "out"
    copy(made.out, out)
    result = run_batch([sheet], out, made.model, KEPT)
    found = {o.manifest.slide_id: o.manifest for o in result.outcomes}
    assert found.pop("a").status == "done"
    words = {name: words for name, (_, words) in BAD.items()} | {"pickled": "h5_files"}
    for name, manifest in found.items():
        assert manifest.status == "failed"
        assert re.search(words[name], manifest.reason), manifest.reason
    # what can be seen without the slide is seen before it is tiled
    tiled = {name for name in found if (out / name / "slide.ome.zarr").exists()}
    assert tiled == {"far", "nan"}


@pytest.mark.parametrize("needed", [True, False])
def test_a_sheet_that_does_not_suit_the_model_is_refused_before_anything(
    made: Made, slide: Path, tmp_path: Path, needed: bool
) -> None:
    sheet = tmp_path / "sheet.csv"
    cells = (made.features, "") if needed else ("", made.features)
    rows = [f"{n},{slide},{cell}" for n, cell in zip("ab", cells, strict=True)]
    sheet.write_text("\n".join(["sample,slide,features", *rows]))
    model = made.model if needed else find_model("synthetic")
    words = "reads features of length 6.*column features" if needed else "reads pixels"
    with pytest.raises(ConfigError, match=f"^b: model .*{words}.*--features"):
        run_batch([sheet], tmp_path / "out", model, KEPT)
    assert not (tmp_path / "out").exists()


def test_a_sheet_names_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "b.h5").write_bytes(b"")
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(
        f"sample,slide,features\na,a.svs,\nb,b.svs,b.h5\nc,c.svs,{tmp_path / 'b.h5'}\n"
    )
    entries = read_samplesheet(sheet)
    assert [e.features for e in entries] == [None, tmp_path / "b.h5", tmp_path / "b.h5"]
    sheet.write_text("sample,slide,features\na,a.svs,b.h5\nb,b.svs,no.h5\n")
    with pytest.raises(
        ConfigError, match=r"line 3: no such file of features: .*no\.h5"
    ):
        read_samplesheet(sheet)
    sheet.write_text("sample,slide,feature\na,a.svs,b.h5\n")
    with pytest.raises(ConfigError, match="optionally mpp,tissue,features,label"):
        read_samplesheet(sheet)


def test_the_sheet_that_trains_on_features_and_labels_is_the_one_that_runs(
    tmp_path: Path,
) -> None:
    rows = []
    for n in range(12):
        write(tmp_path / f"f{n}.zarr", arrays(n))
        rows.append(f"s{n},s{n}.svs,f{n}.zarr,{n % 2}")
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("\n".join(["sample,slide,features,label", *rows]))
    data = open_bags(sheet, BagOptions())
    trained = [
        bag.file.path
        for bag in (*data.train, *data.validation)
        if isinstance(bag, FeatureBag)
    ]
    assert data.tasks == ("label",)
    assert sorted(trained) == sorted(e.features for e in read_samplesheet(sheet))


@pytest.mark.parametrize(
    ("encoder", "length"),
    [("features:6", 6), ("ips-features:12", 12), ("features:x", 0), ("timm:9", 0)],
)
def test_the_card_tells_what_the_selector_reads(
    made: Made, encoder: str, length: int
) -> None:
    card = made.model.card.selector
    other = card.model_copy(update={"architecture": {"encoder": encoder}})
    assert other.inputs == length
    assert card.model_copy(update={"architecture": {}}).inputs == 0


# the verbs, one slide at a time


def wsi(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, WsiError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("kind", ["zarr", "h5"])
def test_a_model_that_only_selects_goes_as_far_as_the_verb_select(
    slide: Path, tmp_path: Path, kind: str
) -> None:
    file = write(tmp_path / f"mine.{kind}", arrays())
    model = model_of(tmp_path / "model")
    mine, read = ("-m", model.path), ("--features", file)
    wsi("tile", slide, "-o", tmp_path / "out", *mine)
    (path,) = (tmp_path / "out").iterdir()
    folder = SlideFolder(path)
    with pytest.raises(ConfigError, match=r"reads features.*--features"):
        wsi("tissue", path, *mine)
    with pytest.raises(RegionError, match=r"no\.h5: no such file of features"):
        wsi("tissue", path, *mine, "--features", tmp_path / "no.h5")
    wsi("tissue", path, *mine, *read)
    shown = wsi("select", path, *mine, *read).splitlines()
    assert_selected(folder, model, arrays())
    assert {Path(line).name for line in shown} == {
        "selection.parquet", "attention.ome.zarr", "attention.png",
        "top_patches.png", "attention.geojson",
    }  # fmt: skip
    assert len(read_annotations(path / "attention.geojson")) == COUNT
    assert all(Path(line).exists() for line in shown)


@pytest.fixture
def selected(made: Made, tmp_path: Path) -> Made:
    return made.copied(tmp_path)


def test_select_keeps_to_the_features_whose_patches_were_laid(
    selected: Made, tmp_path: Path
) -> None:
    path, before = selected.folder.path, selected.folder.record("select")
    mine = "-m", selected.model.path
    pixels = model_of(tmp_path / "pixels", "small")
    other = write(tmp_path / "other.zarr", arrays(1))
    same = "--features", selected.features
    for given, error, words in (
        ((*mine, "--features", other), RegionError, r"other\.zarr.*run `wsi tissue`"),
        (mine, ConfigError, "reads features.*--features"),
        (("-m", pixels.path), RegionError, "no --features.*run `wsi tissue`"),
        (("-m", pixels.path, "--features", other), ConfigError, "reads pixels"),
    ):
        with pytest.raises(error, match=words):
            wsi("select", path, *given)
        assert selected.folder.record("select") == before
        assert selected.folder.manifest.exists()
    write(selected.features, arrays(2))
    with pytest.raises(RegionError, match="the file has changed"):
        wsi("select", path, *mine, *same)
    wsi("tissue", path, *mine, *same)
    wsi("select", path, *mine, *same)
    assert_selected(selected.folder, selected.model, arrays(2))


def test_later_verbs_need_no_features(selected: Made) -> None:
    selected.features.rename(selected.features.with_name("away.zarr"))
    path, mine = selected.folder.path, ("-m", selected.model.path)
    before = selected.folder.record("export")
    wsi("export", path, *mine, "--gzip")
    assert selected.folder.record("export") != before
    assert Manifest.load(selected.folder).facts["tissue"]["features_sha256"]


def test_places_are_those_that_the_file_states_as_in_training(
    selected: Made, tmp_path: Path
) -> None:
    # 64 px at 1 um/px on 128 px: 0.5, as the slide; at 1.005 um/px it is 0.5025
    file = write(tmp_path / "f.zarr", arrays(), target_magnification=10 / 1.005)
    model = model_of(tmp_path / "model", position=True)
    run = SlideRun(selected.folder, RunConfig(), model, features=file)
    for verb in ("tissue", "select"):
        run_stage(verb, run)
    assert_selected(selected.folder, model, arrays(), 0.5025)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_selected(selected.folder, model, arrays(), 0.5)
