"""Training of the segmenter: data, losses, and a tiny run from end to end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.models.sampling import class_shares, identity_grid
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.segmenting import RegionSegmenter
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.models.weights import load_state, save_state
from wsi_pipeline.publishing import sha256_file
from wsi_pipeline.training.arms import TURN_STEPS, ArmOptions, fit_arm
from wsi_pipeline.training.comparing import compare_frames
from wsi_pipeline.training.data import (
    LabelledImages,
    RegionBatch,
    RegionSource,
    Views,
)
from wsi_pipeline.training.datasets import load_dataset
from wsi_pipeline.training.loop import LoopOptions
from wsi_pipeline.training.losses import (
    area_weights,
    balanced_weights,
    boundary_density,
    density_divergence,
    soft_cross_entropy,
)
from wsi_pipeline.training.segment import train_segment
from wsi_pipeline.training.validation import predict_image


def blocks(h: int, w: int, seed: int = 0) -> NDArray[np.uint8]:
    """Labels 0, 1, 2 in blocks of 64 px."""
    cells = np.random.default_rng(seed).integers(3, size=(-(-h // 64), -(-w // 64)))
    out: NDArray[np.uint8] = np.kron(cells, np.ones((64, 64), int))[:h, :w].astype(
        np.uint8
    )
    return out


def coloured(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class k bright in channel k only."""
    out: NDArray[np.uint8] = np.where(
        labels == np.arange(3)[:, None, None], 200, 50
    ).astype(np.uint8)
    return out


def images(*sizes: tuple[int, int]) -> LabelledImages:
    labels = tuple(blocks(h, w, seed) for seed, (h, w) in enumerate(sizes))
    names = tuple(str(i) for i in range(len(sizes)))
    return LabelledImages(tuple(map(coloured, labels)), labels, names, names, 1.0)


def draw(n: int = 6, seed: int = 0) -> RegionBatch:
    source = RegionSource(images((300, 420), (260, 300)), Views((256, 256)), 3)
    return source.draw(n, np.random.default_rng(seed), "cpu")


# data


def test_pixels_and_labels_go_through_the_same_transform() -> None:
    for seed in range(5):
        batch = draw(seed=seed)
        grid = identity_grid(32, 32).expand(6, -1, -1, -1)
        shares = class_shares(batch.tap_labels(grid, 4), 3, 4)
        pixels = batch.sample(grid, 4)
        pure = shares.amax(dim=1) == 1
        # away from block borders the brightest channel names the class; a level-1
        # pixel may reach a little over the border
        agree = pixels.argmax(dim=1) == shares.argmax(dim=1)
        assert pure.float().mean() > 0.5
        assert agree[pure].float().mean() > 0.995


def test_regions_differ_in_place_turn_zoom_and_colours() -> None:
    batch = draw(n=40)
    scale = torch.linalg.det(batch.matrix)
    assert (scale > 0).any()
    assert (scale < 0).any()
    zoom = scale.abs().sqrt() / 255 * 2
    far = zoom > 1.4
    near = zoom[~far]
    assert 0.78 <= near.min() < 0.9 < 1.15 < near.max() <= 1.281
    # a quarter is twice as wide, as coarse regions are
    assert 2 <= int(far.sum()) <= 20
    assert 1.56 <= zoom[far].min() < zoom[far].max() <= 2.561
    assert len({tuple(c) for c in batch.centre.round().tolist()}) > 30
    assert len(set(batch.colours)) == 40


def test_the_same_seed_draws_the_same_batch() -> None:
    a, b, c = draw(seed=3), draw(seed=3), draw(seed=4)
    grid = identity_grid(16, 16).expand(6, -1, -1, -1)
    assert torch.equal(a.sample(grid, 4), b.sample(grid, 4))
    assert not torch.equal(a.sample(grid, 4), c.sample(grid, 4))


@given(value=st.integers(0, 2), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_a_constant_label_stays_constant_also_beyond_the_border(
    value: int, seed: int
) -> None:
    """Check 7: no class is invented, whatever the grid and the transform."""
    label = np.full((300, 300), value, np.uint8)
    data = LabelledImages((coloured(label),), (label,), ("a",), ("a",), 1.0)
    batch = RegionSource(data, Views((280, 280)), 2).draw(
        2, np.random.default_rng(seed), "cpu"
    )
    grid = torch.rand(2, 9, 9, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    assert (batch.tap_labels(grid, 4) == value).all()


def test_sampled_labels_are_labels_of_the_source() -> None:
    labels = np.random.default_rng(0).choice([1, 2, 255], size=(200, 200))
    label = labels.astype(np.uint8)
    data = LabelledImages((coloured(label),), (label,), ("a",), ("a",), 1.0)
    batch = RegionSource(data, Views((128, 128)), 2).draw(
        2, np.random.default_rng(0), "cpu"
    )
    taps = batch.tap_labels(identity_grid(16, 16).expand(2, -1, -1, -1), 4)
    assert set(taps.flatten().tolist()) == {1, 2, 255}
    shares = class_shares(taps, 3, 4)
    assert (shares[:, 0] == 0).all()
    known = functional.avg_pool2d((taps != 255).float(), 4)
    torch.testing.assert_close(shares.sum(dim=1), known)


# losses


def test_area_weights_have_mean_one_and_are_clipped() -> None:
    areas = torch.tensor([1.0, 1, 1, 1e-6, 1e6, 1]).view(1, 1, 2, 3)
    weights = area_weights(areas)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights.max() / weights.min()) <= 100.001
    torch.testing.assert_close(
        area_weights(torch.full((2, 1, 3, 3), 7.0)), torch.ones(2, 1, 3, 3)
    )


def test_area_weighting_makes_node_means_region_means() -> None:
    """A quarter of the nodes on most of the area decides most of the loss."""
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 0, 0, 0] = 4.0
    soft = torch.zeros(1, 2, 2, 2)
    soft[:, 0] = 1
    areas = torch.tensor([[2.8, 0.4], [0.4, 0.4]]).view(1, 1, 2, 2)
    losses = functional.cross_entropy(
        logits, torch.zeros(1, 2, 2).long(), reduction="none"
    )
    expected = float((losses * areas[:, 0]).sum() / 4)
    assert float(soft_cross_entropy(logits, soft, areas)) == pytest.approx(expected)


def test_unlabelled_cells_do_not_count() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4)
    soft = torch.randn(2, 3, 4, 4).softmax(dim=1)
    even = torch.ones(2, 1, 4, 4)
    whole = soft_cross_entropy(logits[:, :, :2], soft[:, :, :2], even[:, :, :2])
    masked = soft.clone()
    masked[:, :, 2:] = 0
    torch.testing.assert_close(soft_cross_entropy(logits, masked, even), whole)
    nothing = soft_cross_entropy(logits, torch.zeros_like(soft), even)
    assert float(nothing) == 0


def test_focus_counts_what_is_known_less() -> None:
    """Focal loss, written out for one node of two classes."""
    logits = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    soft = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    even = torch.ones(1, 1, 1, 1)
    p = 1 / (1 + np.exp(-3.0))
    expected = -0.75 * (1 - p) ** 2 * np.log(p) - 0.25 * p**2 * np.log(1 - p)
    found = soft_cross_entropy(logits, soft, even, focus=2.0)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    plain = soft_cross_entropy(logits, soft, even)
    assert float(plain) == pytest.approx(
        -0.75 * np.log(p) - 0.25 * np.log(1 - p), rel=1e-5
    )


def test_rare_classes_count_more_and_absent_ones_nothing() -> None:
    labels = np.array([[0] * 16 + [1] * 4 + [255] * 5], np.uint8)
    weights = balanced_weights([labels, labels], 3)
    assert float(weights[1] / weights[0]) == pytest.approx(2)
    assert float((weights[:2] * torch.tensor([0.8, 0.2])).sum()) == pytest.approx(1)
    assert float(weights[2]) == 0
    logits = torch.zeros(1, 3, 1, 2)
    soft = torch.zeros(1, 3, 1, 2)
    soft[0, 0, 0, 0] = soft[0, 1, 0, 1] = 1
    logits[0, 1, 0, 1] = 3
    even = torch.ones(1, 1, 1, 2)
    each = -logits.log_softmax(dim=1)
    expected = (each[0, 0, 0, 0] + 2 * each[0, 1, 0, 1]) / 3
    found = soft_cross_entropy(logits, soft, even, class_weights=weights)
    torch.testing.assert_close(found, expected)


def test_in_turns_one_part_moves_while_the_other_rests() -> None:
    data = images((128, 160))
    spec = SegmenterSpec(3, nodes=16, widths=(4, 6), density_widths=(4, 6))
    arm = ArmOptions(Views((96, 96)), 2)
    options = LoopOptions(TURN_STEPS[0], warm_up_steps=1, average=0.0)
    torch.manual_seed(0)
    fresh = SegmentNet(spec, "alternating").state_dict()
    net, _ = fit_arm(spec, "alternating", data, arm, options)
    moved = {
        name.partition(".")[0]
        for name, value in net.named_parameters()
        if not torch.equal(value, fresh[name])
    }
    assert moved == {"placer"}
    longer = replace(options, steps=sum(TURN_STEPS))
    net, _ = fit_arm(spec, "alternating", data, arm, longer)
    assert not torch.equal(
        net.state_dict()["body.head.weight"], fresh["body.head.weight"]
    )


def test_boundary_density_sits_on_the_boundaries() -> None:
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[0, :, 16:] = 2
    labels[:, :4] = 255
    target = boundary_density(labels, (8, 8))
    torch.testing.assert_close(target.sum(dim=(1, 2, 3)), torch.ones(2))
    # a mark is no boundary: the second region is even
    torch.testing.assert_close(target[1], torch.full((1, 8, 8), 1 / 64))
    columns = target[0, 0].sum(dim=0)
    assert (columns[3:5] > 0.25).all()
    assert (columns[[0, 7]] < 0.05).all()
    # the number of a class plays no part
    other = torch.where(labels == 2, 1, labels)
    torch.testing.assert_close(boundary_density(other, (8, 8)), target)


def test_divergence_is_zero_at_the_target_only() -> None:
    target = boundary_density(torch.from_numpy(blocks(128, 128)).long()[None], (16, 16))
    assert float(density_divergence(target, target)) == pytest.approx(0, abs=1e-6)
    even = torch.full_like(target, 1 / 256)
    expected = float((target * (target * 256).log()).sum())
    assert float(density_divergence(even, target)) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


# end to end


def test_a_few_steps_lower_the_loss() -> None:
    spec = SegmenterSpec(3, nodes=16, widths=(8, 12), density_widths=(4, 8))
    data = images((512, 512), (512, 512))
    options = LoopOptions(30, lr=1e-2, warm_up_steps=3, average=0.5)
    arm = ArmOptions(Views((512, 512)), batch=4)
    for strategy in ("learned", "uniform"):
        net, losses = fit_arm(spec, strategy, data, arm, options)
        assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
        found = predict_image(RegionSegmenter(net, 1), data.images[0], 512)
        assert found.shape == (512, 512)
        assert (found == data.labels[0]).mean() > 0.8


def test_small_and_large_images_are_predicted_whole() -> None:
    torch.manual_seed(0)
    spec = SegmenterSpec(3, nodes=16, widths=(4, 6), density_widths=(4, 6))
    segmenter = RegionSegmenter(SegmentNet(spec, "uniform").eval(), 1)
    for h, w in ((100, 200), (522, 775), (512, 513)):
        found = predict_image(segmenter, coloured(blocks(h, w)), 512)
        assert found.shape == (h, w)
        assert found.dtype == np.uint8


def test_training_writes_a_card_and_weights_and_repeats_itself(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cards = [
        train_segment(
            load_dataset("synthetic", None, images=2), tmp_path / name, steps=2,
            batch=2, seed=7,
            progress=lambda done, total: seen.append((done, total)),
        )
        for name in ("a", "b")
    ]  # fmt: skip
    files = [tmp_path / name / "segmenter.safetensors" for name in ("a", "b")]
    assert cards[0].sha256 == cards[1].sha256 == sha256_file(files[0])
    assert files[0].stat().st_size < 6_000_000
    assert seen[3] == (4, 4)
    card = cards[0]
    assert (card.mpp, card.region_px, card.nodes) == (1.0, 512, 64)
    assert set(card.metrics) >= {"learned", "uniform", "learned_minus_uniform"}
    assert 0 <= card.metrics["learned"]["miou"] <= 1
    assert len(card.metrics["uniform"]["iou"]) == 6
    assert card.training["seed"] == 7
    spec = SegmenterSpec.from_card(card, files[0])
    for strategy in spec.strategies:
        load_state(SegmentNet(spec, strategy), files[0], prefix=f"{strategy}.")


def test_a_body_starts_from_a_file_and_wrong_ones_leave_nothing(tmp_path: Path) -> None:
    data = load_dataset("synthetic", None, images=2)
    spec = SegmenterSpec(6, nodes=16, strategies=("uniform",), widths=(4, 6))
    torch.manual_seed(1)
    teacher = SegmentNet(spec, "uniform")
    sha256 = save_state(teacher.body, tmp_path / "body.safetensors")
    card = train_segment(
        data, tmp_path / "a", spec, steps=0, pretrained=tmp_path / "body.safetensors"
    )
    net = SegmentNet(spec, "uniform")
    load_state(net, tmp_path / "a" / "segmenter.safetensors", prefix="uniform.")
    wanted, found = teacher.body.state_dict(), net.body.state_dict()
    for name in ("down.0.0.weight", "down.1.3.weight", "up.0.0.weight"):
        assert torch.equal(found[name], wanted[name].half().float())
    assert card.training["pretrained_sha256"] == sha256
    for wrong, file in (
        (replace(spec, widths=(4, 8)), tmp_path / "body.safetensors"),
        (replace(spec, body_options={"depth": 3}), None),
        (spec, tmp_path / "missing.safetensors"),
    ):
        with pytest.raises(ModelError):
            train_segment(data, tmp_path / "b", wrong, steps=0, pretrained=file)
    assert not (tmp_path / "b").exists()


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = images((128, 160), (130, 150))
    spec = SegmenterSpec(3, nodes=16, widths=(4, 6), density_widths=(4, 6))
    loop = LoopOptions(120, warm_up_steps=3)
    views = Views((96, 96))

    def tick(done: int, total: int) -> None:
        if done == 110:
            raise KeyboardInterrupt

    for strategy in ("learned", "fixed"):
        whole, losses = fit_arm(spec, strategy, data, ArmOptions(views, 2), loop)
        arm = ArmOptions(views, 2, folder=tmp_path)
        with pytest.raises(KeyboardInterrupt):
            fit_arm(spec, strategy, data, arm, loop, progress=tick)
        assert (tmp_path / f"{strategy}.checkpoint").exists()
        with pytest.raises(ConfigError, match="seed"):
            fit_arm(spec, strategy, data, replace(arm, seed=1), loop)
        again, resumed = fit_arm(spec, strategy, data, arm, loop)
        assert resumed == losses
        for a, b in zip(
            whole.state_dict().values(), again.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b)
        assert sorted(p.name for p in tmp_path.iterdir()) == [f"{strategy}.csv"]
        (tmp_path / f"{strategy}.csv").unlink()


def test_images_of_any_size_are_regions_with_nodes_of_their_own(
    tmp_path: Path,
) -> None:
    """Strips: each is one region, its nodes follow from its size."""
    data = images((64, 200), (64, 320), (72, 150))

    def rule(size_px: tuple[int, int]) -> tuple[int, int]:
        return size_px[0] // 4, size_px[1] // 4

    spec = SegmenterSpec(3, nodes=(16, 50), widths=(4, 6), density_widths=(4, 6))
    arm = ArmOptions(Views(None, whole=True), 2, nodes=rule)
    for strategy in ("learned", "edge", "fixed", "uniform", "separable"):
        loop = LoopOptions(3, warm_up_steps=1)
        net, losses = fit_arm(spec, strategy, data, arm, loop)
        assert np.isfinite(losses).all()
        scores = compare_frames(net, data, nodes=rule)
        assert scores.full.sum() == 64 * 200 + 64 * 320 + 72 * 150
        assert scores.nodes.sum(axis=(1, 2)).tolist() == [16 * 50, 16 * 80, 18 * 37]


def test_regions_of_their_own_size_stay_on_their_strip() -> None:
    data = images((64, 640), (640, 64))
    source = RegionSource(data, Views(None, whole=True), 2)
    for seed in range(20):
        batch = source.draw(3, np.random.default_rng(seed), "cpu")
        _, h, w = batch.labels.shape
        corners = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).view(1, 1, 2, 2)
        grid = corners.expand(3, 2, 2, 2)
        moved = (batch.matrix[:, None, None] * grid[..., None, :]).sum(dim=-1)
        across = moved[:, 0, 1] - moved[:, 0, 0]
        # the long side stays the long side, and slants by less than the short side
        assert (across[:, 0].abs() > 0.7 * w).all()
        assert (across[:, 1].abs() < 0.5 * h).all() or w < h
