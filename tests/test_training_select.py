"""Training of the selector on composed bags: the bags, the recipes, the metrics."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import load_state
from wsi_pipeline.publishing import sha256_file
from wsi_pipeline.training import select
from wsi_pipeline.training.bags import (
    Area,
    BagSize,
    compose_cancer,
    compose_glas,
    paint_areas,
    read_glas,
)
from wsi_pipeline.training.large_bags import draw_cancer, draw_glas, fit_large_bags
from wsi_pipeline.training.patch_labels import fit_patches
from wsi_pipeline.training.score import (
    Table,
    area_under_curve,
    bootstrap_interval,
)
from wsi_pipeline.training.select import train_select


def net_of(encoder: str = "small", resizer: str = "") -> SelectorNet:
    torch.manual_seed(0)
    side_px = 16 if resizer else 0
    shape = SelectorShape(encoder, 16, 2, 8, 32, resizer, side_px)
    return SelectorNet(shape, ("cancer",))


def checkered(lesions: int, side: int = 8) -> Area:
    """A lattice of 32 px patches, white but for `lesions` dark ones."""
    shown = np.zeros((side, side), bool)
    shown.ravel()[:lesions] = True
    shown = shown.repeat(32, 0).repeat(32, 1)
    pixels = np.where(shown[..., None], 40, 230).astype(np.uint8).repeat(3, 2)
    return Area(pixels, shown)


# bags


def test_positive_bags_hold_lesions_and_negative_ones_not_a_pixel() -> None:
    areas = [checkered(5), checkered(0)]
    rng = np.random.default_rng(0)
    size = BagSize(40, (0.1, 0.1))
    for positive in (True, False):
        bag = compose_cancer(areas, 32, size, positive, rng)
        dark = (bag.patches < 100).any((1, 2, 3))
        assert bag.patches.shape == (40, 3, 32, 32)
        assert bag.labels.tolist() == [float(positive)]
        assert dark.tolist() == bag.shown.tolist()
        assert dark.sum() == (4 if positive else 0)


def test_areas_without_the_wanted_patches_end_in_an_error() -> None:
    with pytest.raises(ModelError, match="too few patches"):
        compose_cancer(
            [checkered(0)], 32, BagSize(4, (0.5, 0.5)), True, np.random.default_rng(0)
        )


def test_a_gland_free_bag_says_nothing_about_malignancy() -> None:
    areas = [Area(a.pixels, a.shown, True) for a in (checkered(30), checkered(20))]
    rng = np.random.default_rng(0)
    size = BagSize(16, (0.25, 0.25))
    whole, few, none = (compose_glas(areas, 32, size, kind, rng) for kind in range(3))
    assert whole.labels.tolist() == [1, 1]
    assert few.labels.tolist() == [1, 1]
    assert few.shown.sum() == 4
    assert np.isnan(none.labels[0])
    assert none.labels[1] == 0
    assert not (none.patches < 100).any()


def test_cutting_covers_the_area_and_a_random_shift_keeps_the_truth() -> None:
    area = checkered(10)
    patches, share = area.cut(32, 32, None)
    assert patches.shape == (64, 3, 32, 32)
    assert share.sum() == 10
    for seed in range(5):
        patches, share = area.cut(32, 32, np.random.default_rng(seed))
        dark = (patches[:, 0] < 100).mean((1, 2))
        np.testing.assert_allclose(dark, share, atol=1e-6)


def test_painted_areas_repeat_by_seed_and_come_with_and_without_lesions() -> None:
    areas = paint_areas(range(8), 128, 1.0)
    again = paint_areas([3], 128, 1.0)[0]
    assert (again.pixels == areas[3].pixels).all()
    assert areas[0].pixels.shape == (128, 128, 3)
    assert {bool(area.shown.any()) for area in areas} == {True, False}


# training and metrics


def test_auc_counts_pairs_and_ties_half() -> None:
    labels = np.array([True, False, True, False])
    assert area_under_curve(np.array([3, 1, 2, 0]), labels) == 1
    assert area_under_curve(np.array([0, 1, 1, 0]), labels) == 0.5
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    assert area_under_curve(scores, labels) == 0.75
    low, high = bootstrap_interval(scores, labels, 0)
    assert 0 <= low <= 0.75 <= high <= 1


def test_large_bags_teach_the_head_and_leave_the_encoder() -> None:
    rng = np.random.default_rng(0)
    net = net_of()
    encoder = {n: v.clone() for n, v in net.encoder.state_dict().items()}
    shown = np.arange(200) < 20
    embeddings = rng.normal(0, 1, (200, 16)).astype(np.float32)
    embeddings[shown, 0] += 8
    table = Table(
        embeddings,
        np.zeros((200, 2), np.float32),
        shown.astype(np.float32),
        np.arange(200) // 10,
        np.zeros(20, bool),
    )
    losses = fit_large_bags(net, table, draw_cancer, (8,), steps=120, seed=0)
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert all(torch.equal(encoder[n], v) for n, v in net.encoder.state_dict().items())
    assert not net.training


def test_glas_bags_of_embeddings_are_labelled_by_what_they_hold() -> None:
    share = np.tile(np.array([0, 0, 0.5, 0.9], np.float32), 6)
    table = Table(
        np.zeros((24, 4), np.float32),
        np.zeros((24, 2), np.float32),
        share,
        np.arange(24) // 4,
        np.arange(6) < 3,
    )
    rng = np.random.default_rng(0)
    for index in range(8):
        ids, (malignant, gland) = draw_glas(table, index, rng)
        assert gland == float((share[ids] > 0).any())
        if gland:
            owners = set(table.area[ids][share[ids] > 0])
            assert {bool(table.malignant[o]) for o in owners} == {bool(malignant)}
        else:
            assert np.isnan(malignant)


def test_patch_labels_teach_the_encoder_the_share_of_gland() -> None:
    torch.manual_seed(0)
    net = net_of()
    areas = [
        Area(a.pixels, a.shown, bool(i)) for i, a in enumerate(map(checkered, [9, 30]))
    ]
    rng = np.random.default_rng(0)
    tint = lambda patches: patches.float() / 255  # noqa: E731
    losses = fit_patches(net, areas, 32, 25, tint, rng)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_training_writes_weights_that_load_and_a_card_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_AREA_PX", 256)
    seen = []
    card = train_select(
        "synthetic",
        tmp_path,
        data_dir=tmp_path,
        steps=2,
        areas=(6, 6),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    file = tmp_path / "selector.safetensors"
    assert card.sha256 == sha256_file(file)
    assert file.stat().st_size < 3_000_000
    net = SelectorNet(SelectorShape.from_json(card.architecture), card.tasks)
    load_state(net, file)
    assert card.tasks == ("cancer",)
    assert (card.mpp, card.patch_px) == (1.0, 128)
    assert 0 <= card.metrics["auc"]["value"] <= 1
    assert {"auc_mean_pooling", "auc_random_patches"} < set(card.metrics)


def test_a_resizer_is_trained_stored_and_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_AREA_PX", 256)
    shape = SelectorShape(resizer="area", resized_px=48)
    card = train_select(
        "synthetic", tmp_path, data_dir=tmp_path, steps=3, areas=(6, 6), shape=shape
    )
    assert SelectorShape.from_json(card.architecture) == shape
    assert card.patch_px == 128
    net = SelectorNet(shape, card.tasks)
    before = {n: v.clone() for n, v in net.encoder.resizer.named_parameters()}
    assert not before["last.weight"].any()
    load_state(net, tmp_path / "selector.safetensors")
    # decay alone would leave what starts at zero at zero
    assert bool(net.encoder.resizer.last.weight.all())
    assert bool(net.encoder.resizer.last.bias.all())


def test_steps_move_every_weight_of_the_resizer() -> None:
    net = net_of(resizer="bilinear").train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = {n: p.detach().clone() for n, p in net.encoder.resizer.named_parameters()}
    for _ in range(2):  # in the first one gradient reaches the last layer only
        loss = net(
            torch.rand(1, 6, 3, 32, 32), torch.ones(1, 6, dtype=torch.bool)
        ).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in net.encoder.resizer.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_training_on_glas_images(tmp_path: Path) -> None:
    root = tmp_path / "labelled" / "glas"
    rng = np.random.default_rng(0)
    rows = []
    for folder in ("images", "masks3"):
        (root / folder).mkdir(parents=True)
    for index in range(4):
        name, malignant = f"image_{index}", index % 2 == 0
        mask = np.zeros((320, 320), np.uint8)
        mask[:, :160] = 2 if malignant else 1
        pixels = rng.integers(0, 255, (320, 320, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks3" / f"{name}.png")
        grade = "malignant" if malignant else "benign"
        rows.append([name, index, grade, "train" if index < 2 else "val"])
    with (root / "split.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["name", "patient_id", "grade", "split"])
        table.writerows(rows)
    card = train_select("glas", tmp_path / "out", data_dir=tmp_path, steps=1)
    assert card.tasks == ("malignant", "gland")
    assert card.mpp == 0.62
    assert card.metrics["bags"] == 2


def test_missing_data_and_unknown_data_sets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="WSI_DATA"):
        train_select("glas", tmp_path, data_dir=tmp_path)
    with pytest.raises(UnknownNameError, match="synthetic, glas"):
        train_select("camelyon", tmp_path, data_dir=tmp_path)


def test_the_real_glas_split_has_no_patient_twice(data_dir: Path) -> None:
    train, validation = read_glas(data_dir, "train"), read_glas(data_dir, "val")
    assert (len(train), len(validation)) == (101, 25)
    assert sum(area.malignant for area in train) == 59
    assert all(area.shown.any() for area in train)
