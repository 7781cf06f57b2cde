"""Training from slide-level labels, from tables and files to a model's folder."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from wsi_pipeline.cli import app
from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import ConfigError, ModelError, RegionError
from wsi_pipeline.features import FeatureFile
from wsi_pipeline.geometry import Box, Scale
from wsi_pipeline.layout import Layout
from wsi_pipeline.models.cards import SelectorCard, find_model
from wsi_pipeline.models.encoders import SmallEncoder
from wsi_pipeline.models.scoring import load_selector
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import save_state
from wsi_pipeline.ngff import Source
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.regions import PatchGrid
from wsi_pipeline.selection import select_from, select_patches
from wsi_pipeline.training import from_labels
from wsi_pipeline.training.bag_score import measure_bags
from wsi_pipeline.training.describing import publish_part
from wsi_pipeline.training.from_labels import fitting_shape, train_from_labels
from wsi_pipeline.training.label_options import BagOptions, LabelTraining
from wsi_pipeline.training.labelled_bags import BagData, open_bags

PX, SIDE = 32, 5
SMALL = SelectorShape("small", 16, 2, 8, 32)
QUICK = LabelTraining(steps=4, bags=2, top_m=4)


def noise(seed: int, *, lesion: bool) -> NDArray[np.uint8]:
    """A slide of SIDE x SIDE patches, bluish but for a dark red one with a lesion."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(120, 200, (PX * SIDE, PX * SIDE, 3)).astype(np.uint8)
    pixels[..., 2] += 40
    if lesion:
        x, y = rng.integers(SIDE, size=2) * PX
        pixels[y : y + PX, x : x + PX] = rng.integers(0, 60, (PX, PX, 3))
        pixels[y : y + PX, x : x + PX, 0] += 100
    return pixels


def tile(folder: Path, pixels: NDArray[np.uint8]) -> None:
    """A slide's results as `wsi tile` and `wsi tissue` leave them."""
    h, w, _ = pixels.shape
    folder.mkdir(parents=True)
    source = Source("s.tif", (w, h), Scale(0.5, 0.5), "test", Box(0, 0, w, h))
    layout = Layout(chunk_px=64, block_px=128)
    made = Pyramid.create(folder / "slide.ome.zarr", source, 1, layout)
    planes = pixels.transpose(2, 0, 1)
    for index, level in enumerate(made.levels):
        view = planes[:, :: 2**index, :: 2**index]
        for box in level.box.blocks(made.shard_px(index)):
            made.put(index, box, np.ascontiguousarray(view[:, box.rows, box.columns]))
    y, x = np.mgrid[0:h:PX, 0:w:PX]
    corners = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)
    grid = PatchGrid(corners, PX, PX, 0.5, np.ones(len(corners), np.float32))
    grid.save(folder / "patches.parquet")


def write_sheet(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tiled slides, every other one with a lesion, and their sheet."""
    root = tmp_path_factory.mktemp("slides")
    rows = []
    for n in range(12):
        tile(root / "results" / f"s{n}", noise(n, lesion=n % 2 == 1))
        rows.append(f"s{n},s{n}.svs,{n % 2},{'train' if n < 8 else 'val'}")
    write_sheet(root / "sheet.csv", "sample,slide,cancer,split", rows)
    return root


@pytest.fixture(scope="module")
def tiled(slides: Path) -> BagData:
    return open_bags(slides / "sheet.csv", BagOptions(slides / "results"))


def write_features(
    path: Path, n: int, lesions: int = 0, glands: int = 0, width: int = 6, **facts
) -> None:
    rng = np.random.default_rng([len(path.name), n])
    values = rng.normal(size=(n, width)).astype(np.float32)
    values[:lesions, :2] += 6
    values[lesions : lesions + glands, 2:4] += 6
    group = zarr.open_group(path, mode="w")
    group.create_array("features", data=values)
    coords = group.create_array("coords", data=np.arange(2 * n).reshape(n, 2) * 256)
    coords.attrs.update(facts)


TRIDENT = {"patch_size": 256, "patch_size_level0": 512, "target_magnification": 20}


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A sheet of twelve files of features, two tasks, some labels unknown."""
    rows = []
    for n in range(12):
        cancer, gland = n % 2, int(n % 4 < 2)
        path = tmp_path / f"f{n}.zarr"
        write_features(path, 20 + n, 8 * cancer, 8 * gland, **TRIDENT)
        known = "" if n in (2, 6) else gland
        rows.append(f"s{n},f{n}.zarr,{cancer},{known},{'train' if n < 8 else 'val'}")
    return write_sheet(
        tmp_path / "sheet.csv", "sample,features,cancer,gland,split", rows
    )


# bags


def test_tiled_slides_become_bags(tiled: BagData) -> None:
    assert (tiled.name, tiled.tasks, tiled.inputs) == ("sheet", ("cancer",), 0)
    assert (tiled.patch_px, tiled.mpp) == (PX, 0.5)
    assert [len(part) for part in (tiled.train, tiled.validation)] == [8, 4]
    bag = tiled.train[1]
    assert bag.labels.tolist() == [1.0]
    whole = noise(1, lesion=True)
    seen = {}
    for ids, patches in bag.batches(bag.order, 7):
        seen |= dict(zip(ids.tolist(), patches, strict=True))
    assert sorted(seen) == list(range(SIDE**2))
    for n, patch in seen.items():
        y, x = n // SIDE * PX, n % SIDE * PX
        wanted = whole[y : y + PX, x : x + PX].transpose(2, 0, 1)
        np.testing.assert_array_equal(patch, wanted)
    np.testing.assert_allclose(bag.places_um, 0.5 * bag.grid.corners)


def test_pictures_are_cut_into_touching_patches(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    pixels = {}
    for n in range(4):
        pixels[n] = noise(n, lesion=n % 2 == 1)[: PX * 2 + 10, : PX * 3]
        Image.fromarray(pixels[n]).save(tmp_path / "images" / f"p{n}.png")
    rows = [f"p{n},{n % 2},{'train' if n < 2 else 'val'}" for n in range(4)]
    write_sheet(tmp_path / "labels.csv", "name,malignant,split", rows)
    data = open_bags(tmp_path, BagOptions(patch_px=PX, mpp=0.5))
    assert (data.name, data.patch_px, data.mpp) == (tmp_path.name, PX, 0.5)
    bag = data.train[1]
    corners = [(x, y) for y in (0, PX, PX + 10) for x in (0, PX, 2 * PX)]
    assert len(bag) == len(corners)
    (ids, patches), *rest = bag.batches(np.array([8, 0, 4]), 5)
    assert not rest
    for n, patch in zip(ids, patches, strict=True):
        x, y = corners[n]
        wanted = pixels[1][y : y + PX, x : x + PX].transpose(2, 0, 1)
        np.testing.assert_array_equal(patch, wanted)
    np.testing.assert_allclose(bag.places_um, 0.5 * np.array(corners))


def test_files_of_features_become_bags(features: Path) -> None:
    data = open_bags(features, BagOptions())
    assert (data.tasks, data.inputs) == (("cancer", "gland"), 6)
    assert (data.patch_px, data.mpp) == (256, 0.5)
    assert [len(bag) for bag in data.train] == list(range(20, 28))
    np.testing.assert_array_equal(data.train[2].labels, [0, np.nan])
    # 256 px of 0.5 um in 512 level-0 px
    assert data.train[0].places_um[1].tolist() == [0.25 * 512, 0.25 * 768]


def test_the_digest_tells_labels_and_splits_apart(slides: Path, tmp_path: Path) -> None:
    rows = (slides / "sheet.csv").read_text().splitlines()
    seen = set()
    for change in (("", ""), ("s11,s11.svs,1", "s11,s11.svs,0"), ("1,val", "1,train")):
        text = "\n".join(rows).replace(*change)
        (tmp_path / "sheet.csv").write_text(text)
        options = BagOptions(slides / "results")
        seen.add(open_bags(tmp_path / "sheet.csv", options).digest)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (["a,f0.zarr,1", "b,gone.zarr,0"], {}, r"line 3: .*gone\.zarr: no such file"),
        (["a,f0.zarr,1", "b,,0"], {}, "line 3: no features.*leave the row out"),
        (["a,f0.zarr,1", "b,wide.zarr,0"], {}, "wide.zarr: features of length 7.*6"),
        (["a,f0.zarr,1", "b,empty.zarr,0"], {}, "line 3: .*empty.zarr: no patch"),
        (["a,f0.zarr,1", "b,ten.zarr,0"], {}, "line 3: patches of 256 px at 1 um/px"),
        (["a,bare.zarr,1", "b,bare.zarr,0"], {}, "bare.zarr: .*--patch-px and --mpp"),
        (["a,f0.zarr,1"], {"mpp": 0.4}, "f0.zarr: states 0.5, the options say 0.4"),
        (["a,,1"], {}, "--results names the folder"),
        (["a,,1"], {"results": True}, "line 2: .*slide.ome.zarr: .*`wsi tile`"),
        (["a,,1"], {"results": True, "mpp": 1.0}, "leave --patch-px and --mpp out"),
        (["blank,,1"], {"results": True}, "line 2: .*no patch on tissue"),
        (["a,f0.zarr,"], {}, "no row has a label"),
    ],
)
def test_slides_that_do_not_fit_are_named_with_their_row(
    features: Path, rows: list[str], options: dict[str, object], words: str
) -> None:
    root = features.parent
    write_features(root / "wide.zarr", 4, width=7, **TRIDENT)
    write_features(root / "empty.zarr", 0, **TRIDENT)
    write_features(root / "ten.zarr", 4, **TRIDENT | {"target_magnification": 10})
    write_features(root / "bare.zarr", 4)
    tile(root / "blank", noise(0, lesion=False))
    PatchGrid(np.empty((0, 2), np.int64), PX, PX, 0.5, np.empty(0, np.float32)).save(
        root / "blank" / "patches.parquet"
    )
    write_sheet(features, "sample,features,cancer", rows)
    if "results" in options:
        options = options | {"results": root}
    with pytest.raises(ConfigError, match=words):
        open_bags(features, BagOptions(**options))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["p0,1", "p9,0"], r"line 3: .*p9\.\*: no such picture"),
        (["p0,1", "tiny,0"], r"line 3: .*tiny\.png: 20 x 20 px.*--patch-px"),
        (["p0,1", "text,0"], r"line 3: .*text\.png: cannot be read"),
    ],
)
def test_pictures_that_do_not_fit_are_named_with_their_row(
    tmp_path: Path, rows: list[str], words: str
) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(noise(0, lesion=False)).save(tmp_path / "images" / "p0.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "tiny.png")
    (tmp_path / "images" / "text.png").write_text("no picture")
    write_sheet(tmp_path / "labels.csv", "name,malignant", rows)
    with pytest.raises(ConfigError, match=words):
        open_bags(tmp_path, BagOptions(patch_px=PX, mpp=0.5))


# encoders


def weights(path: Path, **tensors: torch.Tensor) -> Path:
    from safetensors.torch import save_file

    save_file(tensors, path)
    return path


def test_the_encoder_follows_data_and_weights(
    tiled: BagData, features: Path, tmp_path: Path
) -> None:
    rows = open_bags(features, BagOptions())
    batch = weights(tmp_path / "a.safetensors", **{"bn1.running_mean": torch.ones(1)})
    other = weights(tmp_path / "b.safetensors", **{"bn1.weight": torch.ones(1)})
    usual = SelectorShape()
    for data, encoder, file, wanted in (
        (tiled, None, None, "small"),
        (tiled, "resnet18", None, "resnet18"),
        (tiled, "resnet18", batch, "resnet18-frozen"),
        (tiled, "resnet18-frozen", batch, "resnet18-frozen"),
        (tiled, "timm:resnet18", batch, "timm-frozen:resnet18"),
        (tiled, "resnet18", other, "resnet18"),
        (rows, None, None, "features:6"),
    ):
        assert fitting_shape(data, usual, encoder, file).encoder == wanted
    for data, encoder, words in (
        (rows, "small", "features, features:6 reads them"),
        (tiled, "features:6", "are pixels"),
        (tiled, "resnet50-frozen", "--pretrained"),
    ):
        with pytest.raises(ConfigError, match=words):
            fitting_shape(data, usual, encoder, None)


def test_an_encoder_that_does_not_take_the_patches_is_refused_at_once(
    tiled: BagData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SmallEncoder, patches: torch.Tensor) -> torch.Tensor:
        raise AssertionError("Input height (32) doesn't match model (224).")  # as timm

    monkeypatch.setattr(SmallEncoder, "forward", refuse)
    with pytest.raises(ModelError, match=r"patches of 32 px: Input.*--resized-px"):
        train_from_labels(tiled, tmp_path / "out", SMALL, QUICK)
    assert not (tmp_path / "out").exists()


def test_patches_that_cannot_be_read_are_not_blamed_on_the_encoder(
    features: Path, tmp_path: Path
) -> None:
    data = open_bags(features, BagOptions())
    zarr.open_group(features.parent / "f0.zarr")["features"][:, 0] = np.nan
    shape = fitting_shape(data, SMALL, None, None)
    with pytest.raises(RegionError, match=r"f0\.zarr.*not finite"):
        train_from_labels(data, tmp_path / "out", shape, QUICK)


def test_training_starts_from_the_weights_of_another_selector(
    tiled: BagData, tmp_path: Path
) -> None:
    torch.manual_seed(9)
    net = SelectorNet(SMALL, ("other",))
    save_state(net, tmp_path / "selector.safetensors")
    options = replace(QUICK, steps=0, pretrained=tmp_path / "selector.safetensors")
    card = train_from_labels(tiled, tmp_path / "out", SMALL, options)
    found = load_file(tmp_path / "out" / "selector.safetensors")
    for name, value in net.encoder.state_dict().items():
        assert torch.equal(found[f"encoder.{name}"], value)
    assert not torch.equal(found["attention.k.weight"], net.attention.k.weight)
    assert len(card.training["pretrained_sha256"]) == 64


# training


def test_lesions_are_learned_from_labels_alone_and_the_folder_scores_a_slide(
    slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    done = CliRunner().invoke(
        app,
        ["train", "select", str(slides / "sheet.csv"), "-o", str(out), "--results",
         str(slides / "results"), "--top-m", "3", "--steps", "40", "--share", "1"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    model = find_model(out)
    card = model.card.selector
    facts = card.metrics["tasks"]["cancer"]
    assert (facts["bags"], facts["positives"]) == (4, 2)
    assert facts["auc"]["value"] == 1.0
    assert set(facts) > {"auc_random_patches", "auc_mean_pooling"}
    assert (card.top_m, card.patch_px, card.mpp) == (3, PX, 0.5)
    assert "Split as the table states." in model.card.data
    assert not (out / "training" / "selector.checkpoint").exists()
    assert (out / "training" / "selector.csv").read_text().startswith("step,loss")
    for n in (9, 11):
        folder = slides / "results" / f"s{n}"
        pyramid = Pyramid(folder / "slide.ome.zarr")
        grid = PatchGrid.load(folder / "patches.parquet")
        found = select_patches(pyramid, grid, model, SelectOptions(device="cpu"))
        patches = np.stack(
            [pyramid.read_level(grid.box(i), 0) for i in range(len(grid))]
        )
        lesion = int(patches[:, 1].mean((1, 2)).argmin())
        assert found.rank[lesion] == 0
        assert found.facts["predictions"]["cancer"] > 0.5


def test_features_are_learned_for_several_tasks_with_more_m_than_patches(
    features: Path, tmp_path: Path
) -> None:
    data = open_bags(features, BagOptions())
    shape = fitting_shape(data, SMALL, None, None)
    options = replace(QUICK, steps=40, bags=4, top_m=40, share=1.0, lr=1e-2)
    card = train_from_labels(data, tmp_path, shape, options)
    assert card.architecture["encoder"] == "features:6"
    tasks = card.metrics["tasks"]
    assert [tasks[name]["auc"]["value"] for name in data.tasks] == [1.0, 1.0]
    assert (tasks["gland"]["bags"], tasks["gland"]["positives"]) == (4, 2)
    publish_part(tmp_path, "sheet", card)
    file = FeatureFile.open(features.parent / "f9.zarr")  # gland, cancer
    scale = Scale(0.25, 0.25)
    found = select_from(
        file,
        file.grid(256, 0.5, scale, (20_000, 20_000)),
        scale,
        find_model(tmp_path),
        SelectOptions(device="cpu"),
    )
    net = load_selector(find_model(tmp_path))
    ((ids, values),) = file.batches(np.arange(len(file)), len(file))
    with torch.no_grad():
        x = net.embed(torch.from_numpy(values))
        logits, chances = net.logits(x).numpy(), net.predict(x[None])[0].sigmoid()
    np.testing.assert_allclose(found.logits[ids], logits, rtol=0, atol=1e-5)
    predicted = list(found.facts["predictions"].values())
    np.testing.assert_allclose(predicted, chances, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_interrupted_training_ends_with_the_same_weights(
    tiled: BagData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    monkeypatch.setattr(from_labels, "_CHECKPOINT_STEPS", 2)
    options = replace(QUICK, steps=7, precision=precision)
    wanted = train_from_labels(tiled, tmp_path / "a", SMALL, options)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_from_labels(tiled, tmp_path / "b", SMALL, options, progress=stop)
    assert (tmp_path / "b" / "training" / "selector.checkpoint").exists()
    torch.manual_seed(123)
    seen = []
    again = train_from_labels(
        tiled, tmp_path / "b", SMALL, options, progress=lambda n, _: seen.append(n)
    )
    assert seen == [5, 6, 7]
    assert again.sha256 == wanted.sha256
    assert again.metrics == wanted.metrics


def test_a_checkpoint_of_other_labels_is_refused(
    tiled: BagData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_labels, "_CHECKPOINT_STEPS", 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_from_labels(tiled, tmp_path, SMALL, QUICK, progress=stop)
    other = replace(tiled, digest="other")
    with pytest.raises(ConfigError, match=r"selector\.checkpoint.*drawn_from"):
        train_from_labels(other, tmp_path, SMALL, QUICK)


def drawn(data: BagData, options: LabelTraining, steps: int) -> list[list[int]]:
    draw = from_labels._drawing(data.train, options, half=False)
    names = {id(bag): n for n, bag in enumerate(data.train)}
    return [[names[id(bag)] for bag in draw(step)[0]] for step in range(steps)]


def test_every_slide_comes_once_per_round_in_an_order_of_its_own(
    tiled: BagData,
) -> None:
    steps = drawn(tiled, QUICK, 8)
    rounds = [list(chain(*steps[i : i + 4])) for i in (0, 4)]
    assert [sorted(one) for one in rounds] == [list(range(8))] * 2
    assert rounds[0] != rounds[1]
    assert drawn(tiled, QUICK, 8) == steps
    assert drawn(tiled, replace(QUICK, seed=1), 8) != steps


def test_each_process_has_its_own_slides(
    tiled: BagData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_labels, "_ranks", lambda: 2)
    parts = []
    for number in (0, 1):
        monkeypatch.setattr(from_labels, "rank", lambda number=number: number)
        parts.append(drawn(tiled, QUICK, 2))
    first, second = parts
    # two steps of two slides each in two processes: a round of eight
    assert sorted(chain(*first, *second)) == list(range(8))


def test_labels_of_one_kind_in_validation_give_no_auc(tiled: BagData) -> None:
    torch.manual_seed(0)
    net = SelectorNet(SMALL, ("cancer",))
    negative = [bag for bag in tiled.validation if not bag.labels[0]]
    facts = measure_bags(net, tiled.train, negative, 4, seed=0)["tasks"]["cancer"]
    assert (facts["bags"], facts["positives"], facts["auc"]) == (2, 0, None)


def test_measuring_is_what_one_computes_by_hand(tiled: BagData) -> None:
    torch.manual_seed(0)
    net = SelectorNet(SMALL, ("cancer",)).eval()
    found = from_labels.measure_bags(net, tiled.train, tiled.validation, 4, seed=0)
    scores = []
    with torch.no_grad():
        for bag in tiled.validation:
            ((_, patches),) = bag.batches(np.arange(len(bag)), 100)
            x = net.embed(torch.from_numpy(patches))
            logits = net.logits(x)
            best = logits.softmax(0).mean(1).argsort(descending=True)[:4]
            scores.append(float(net.predict(x[best][None])))
    labels = [bool(bag.labels[0]) for bag in tiled.validation]
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, p in zip(scores, labels, strict=True) if p
        for b, q in zip(scores, labels, strict=True) if not q
    ]  # fmt: skip
    assert found["tasks"]["cancer"]["auc"]["value"] == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LabelTraining(bags=0), "bags must be above 0"),
        (lambda: LabelTraining(top_m=-1), "top_m must be above 0"),
        (lambda: LabelTraining(lr=float("nan")), "lr must be above 0"),
        (lambda: LabelTraining(share=0.0), "share must be above 0 and at most 1"),
        (lambda: BagOptions(mpp=0.0), "mpp must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    make: Callable[[], object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


# the model's folder


def test_a_segmenter_joins_a_selector_trained_from_labels(
    tiled: BagData, tmp_path: Path
) -> None:
    from tests.models import small_model

    out = tmp_path / "mine"
    out.mkdir()
    made = train_from_labels(tiled, out, SMALL, replace(QUICK, steps=0))
    assert publish_part(out, "sheet", made) == out / "card.json"
    alone = find_model(out)
    load_selector(alone)
    assert alone.card.finest_mpp == 0.5
    with pytest.raises(ModelError, match=r"only selects.*wsi train segment"):
        alone.card.need_segmenter()
    segmenter = small_model(tmp_path).card.need_segmenter()
    publish_part(out, "synthetic", segmenter)
    both = find_model(out).card
    assert (both.selector, both.segmenter) == (made, segmenter)
    assert both.summary.startswith("painted prostate")
    assert both.licence.startswith("Apache-2.0; selector: as the owner")
    # once more, and the sentences do not pile up
    publish_part(out, "sheet", made)
    assert find_model(out).card == both
    assert (out / "LICENSE").read_text().count("from slide-level labels:") == 1


def test_a_segmenter_of_unknown_classes_is_not_put_together(tmp_path: Path) -> None:
    from tests.models import small_model

    segmenter = small_model(tmp_path).card.need_segmenter()
    segmenter = segmenter.model_copy(update={"training": {"dataset": "folder"}})
    out = tmp_path / "mine"
    out.mkdir()
    (out / "segmenter.card.json").write_bytes(
        orjson.dumps(segmenter.model_dump(mode="json"))
    )
    selector = SelectorCard(
        sha256="0" * 64, mpp=0.5, patch_px=PX, top_m=4, tasks=("a",), architecture={},
        training={"labels": "slides", "data": "x", "dataset": "sheet"}, metrics={},
    )  # fmt: skip
    with pytest.raises(ModelError, match="train it again after this selector"):
        publish_part(out, "sheet", selector)


# the verb


def test_a_recipe_of_ours_takes_no_options_of_ones_own(tmp_path: Path) -> None:
    for extra in (["--top-m", "9"], ["--results", "x"], ["--encoder", "resnet18"]):
        done = CliRunner().invoke(
            app, ["train", "select", "glas", "-o", str(tmp_path / "m"), *extra]
        )
        assert isinstance(done.exception, ConfigError)
        assert "has its own recipe" in str(done.exception)


@pytest.mark.slow
def test_two_processes_train_one_selector(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(
        [sys.executable, "-m", "wsi_pipeline", "train", "select", str(features), "-o",
         str(out), "--devices", "2", "--bags", "2", "--steps", "3", "--top-m", "4"],
        env=kept | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = find_model(out).card.selector
    assert (card.training["devices"], card.training["steps"]) == (2, 3)
    load_selector(find_model(out))
    rows = (out / "training" / "selector.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["step", "3"]
