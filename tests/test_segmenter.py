"""The segmenter as a net: files, strategies, batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.models import small_model, small_spec
from wsi_pipeline.config import SegmentOptions
from wsi_pipeline.errors import BudgetError, ModelError, UnknownNameError
from wsi_pipeline.metrics import confusion, mean_iou
from wsi_pipeline.models.cards import ModelFolder
from wsi_pipeline.models.sampling import identity_grid, sample_at, to_unit
from wsi_pipeline.models.segmenter import SegmentNet, load_segmenter
from wsi_pipeline.models.segmenting import RegionSegmenter, open_segmenter, read_level
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.models.unet import UNet
from wsi_pipeline.models.weights import load_state, save_state


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A small model with random weights in both strategies."""
    return small_model(tmp_path_factory.mktemp("model"))


def pixels(n: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    out: NDArray[np.uint8] = random.integers(256, size=(n, 3, side, side)).astype(
        np.uint8
    )
    return out


def test_the_shipped_size_is_as_documented() -> None:
    net = SegmentNet(SegmenterSpec(3), "uniform")
    assert sum(p.numel() for p in net.parameters()) == 472_259


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (5, 4)])
def test_unet_keeps_any_size(size: tuple[int, int]) -> None:
    out = UNet(3, 2, (4, 6, 8)).eval()(torch.zeros(1, 3, *size))
    assert out.shape == (1, 2, *size)


def test_spec_survives_the_card(model: ModelFolder) -> None:
    card = model.card.segmenter
    assert SegmenterSpec.from_card(card, model.path) == small_spec()
    strange = card.model_copy(update={"architecture": {"classes": 3, "layers": 9}})
    with pytest.raises(ModelError, match="layers"):
        SegmenterSpec.from_card(strange, model.path)


def test_probabilities_and_grid_are_what_regions_promise(model: ModelFolder) -> None:
    for strategy in ("learned", "uniform"):
        segmenter = RegionSegmenter(load_segmenter(model, strategy, "cpu"), 2)
        probabilities, grids = segmenter(pixels(3, 64), 1)
        assert probabilities.shape == (3, 3, 16, 16)
        assert probabilities.dtype == np.float16
        assert grids.dtype == np.float32
        assert grids.shape == (3, 2, 16, 16)
        assert np.abs(probabilities.astype(np.float64).sum(axis=1) - 1).max() < 2e-3
        assert 0 <= grids.min() <= grids.max() <= 1
        even = np.abs(grids - to_unit(identity_grid(16, 16)).numpy()).max()
        assert (even == 0) == (strategy == "uniform")


def test_a_region_does_not_depend_on_its_batch(model: ModelFolder) -> None:
    segmenter = RegionSegmenter(load_segmenter(model, "learned", "cpu"), 4)
    regions = pixels(6, 64)
    together = segmenter(regions, 0)
    for nth in (0, 3, 5):
        alone = segmenter(regions[nth : nth + 1], 0)
        np.testing.assert_array_equal(alone[0][0], together[0][nth])
        np.testing.assert_array_equal(alone[1][0], together[1][nth])


def test_level_read_is_never_coarser_than_a_tap() -> None:
    net = SegmentNet(SegmenterSpec(3), "uniform")
    assert [read_level(net, side) for side in (64, 256, 510, 512, 1100, 2048)] == [
        0, 0, 1, 1, 2, 3
    ]  # fmt: skip
    assert read_level(SegmentNet(SegmenterSpec(3), "point"), 2048) == 0


def test_the_same_tissue_on_another_level_gives_the_same_answer(
    model: ModelFolder,
) -> None:
    """Level 1 with its half-pixel shift is the same place as level 0."""
    smooth = np.zeros((1, 3, 128, 128), np.float64)
    y, x = np.mgrid[:128, :128]
    for channel in range(3):
        smooth[0, channel] = 127 + 100 * np.sin(x / 17 + channel) * np.cos(y / 23)
    fine = smooth.round().astype(np.uint8)
    coarse = smooth.reshape(1, 3, 64, 2, 64, 2).mean(axis=(3, 5)).round()
    segmenter = RegionSegmenter(load_segmenter(model, "learned", "cpu"), 1)
    a, b = segmenter(fine, 0), segmenter(coarse.astype(np.uint8), 1)
    assert np.abs(a[1] - b[1]).max() * 127 < 0.25
    assert np.abs(a[0].astype(np.float32) - b[0]).max() < 0.05


def test_even_density_through_the_whole_deformed_path_is_the_baseline() -> None:
    """Check 10: maps, sampler and inverse add nothing of their own."""
    torch.manual_seed(0)
    spec = small_spec(nodes=32)
    uniform, learned = (SegmentNet(spec, s).eval() for s in ("uniform", "learned"))
    with torch.no_grad():
        # untrained logits hardly differ: centred, so that every class wins
        image = np.kron(pixels(1, 16, seed=5), np.ones((1, 1, 16, 16), np.uint8))
        view = torch.from_numpy(image[..., ::8, ::8]).float() / 127.5 - 1
        uniform.body.head.bias -= uniform.body(view).mean(dim=(0, 2, 3))
    learned.body.load_state_dict(uniform.body.state_dict())
    head = learned.placer.net.net.head
    nn.init.normal_(head.weight, std=0.05)
    unit = np.linspace(0, 1, 256)
    masks = []
    for net in (uniform, learned):
        probabilities, grids = RegionSegmenter(net, 1)(image, 0)
        masks.append(sample_at(probabilities[0], grids[0], unit, unit).argmax(axis=0))
    # not the identity to the last bit, so the exact inverse is at work
    assert 2e-6 < np.abs(grids - to_unit(identity_grid(32, 32)).numpy()).max() < 1e-3
    assert np.bincount(masks[0].ravel()).min() > 2000
    assert mean_iou(confusion(masks[0], masks[1], 3)) > 0.998


def test_memory_too_small_for_one_region_is_refused(model: ModelFolder) -> None:
    tiny = SegmentOptions(device="cpu", memory="1MiB")
    with (
        pytest.raises(BudgetError, match=r"--memory .* segmenter needs at least"),
        open_segmenter(model, tiny, 128.0),
    ):
        pass
    roomy = SegmentOptions(device="cpu", memory="512MiB")
    with open_segmenter(model, roomy, 128.0) as segmenter:
        assert segmenter.plan is not None
        assert segmenter.plan.measured_bytes <= 512 * 2**20
        assert segmenter.batch == 8


def test_what_is_opened_is_folded_and_as_precise_as_asked(model: ModelFolder) -> None:
    regions = pixels(2, 64)
    plain = RegionSegmenter(load_segmenter(model, "learned", "cpu"), 2)(regions, 0)
    found = {}
    for precision in ("float32", "bfloat16"):
        options = SegmentOptions(device="cpu", precision=precision)
        with open_segmenter(model, options, 64.0) as segmenter:
            norms = [m for m in segmenter.net.modules() if isinstance(m, _BatchNorm)]
            assert not norms
            assert segmenter.precision == precision
            probabilities, found[precision] = segmenter(regions, 0)
        assert np.abs(probabilities.astype(np.float32) - plain[0]).max() < 0.01
    rounding = {name: np.abs(grid - plain[1]).max() for name, grid in found.items()}
    assert rounding["float32"] < 1e-6 < rounding["bfloat16"] < 1e-3


# files


def test_half_precision_file_is_small_and_close(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, copy = (SegmentNet(small_spec(), "learned").eval() for _ in range(2))
    sizes = []
    for half in (False, True):
        file = tmp_path / f"{half}.safetensors"
        save_state(net, file, half=half)
        sizes.append(file.stat().st_size)
        load_state(copy, file)
        for a, b in zip(
            net.state_dict().values(), copy.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-3 if half else 0, atol=1e-6 * half)
    assert sizes[1] < 0.6 * sizes[0]


def test_saving_twice_gives_the_same_file(tmp_path: Path) -> None:
    net = SegmentNet(small_spec(), "learned")
    shas = [save_state(net, tmp_path / f"{i}.safetensors") for i in range(2)]
    assert shas[0] == shas[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", r"misses 1 tensors \(head.bias"),
        ("add", r"has unknown 1 tensors \(more"),
        ("reshape", r"head.bias has shape \(5,\), .* needs \(2,\)"),
        ("nan", "head.bias holds values that are not finite"),
        ("garbage", "no readable safetensors"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    change: str, message: str, tmp_path: Path
) -> None:
    net = UNet(3, 2, (4, 6))
    file = tmp_path / "net.safetensors"
    save_state(net, file)
    tensors = load_file(file)
    if change == "drop":
        del tensors["head.bias"]
    elif change == "add":
        tensors["more"] = torch.zeros(1)
    elif change == "reshape":
        tensors["head.bias"] = torch.zeros(5)
    else:
        tensors["head.bias"] = torch.full((2,), float("nan"))
    save_file(tensors, file)
    if change == "garbage":
        file.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=message):
        load_state(net, file)


def test_a_strategy_without_weights_is_named(tmp_path: Path) -> None:
    model = small_model(tmp_path, strategies=("uniform",))
    assert len(list(load_segmenter(model, "uniform", "cpu").placer.parameters())) == 0
    with pytest.raises(UnknownNameError, match="it has: uniform"):
        load_segmenter(model, "learned", "cpu")
    with pytest.raises(UnknownNameError, match="there are: learned, uniform"):
        SegmentNet(small_spec(), "foveal")


def test_a_card_for_another_net_is_refused(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    card = model.card.model_copy(update={"classes": model.card.classes[:2]})
    with pytest.raises(ModelError, match="3 classes and 16 nodes, the card 2 and 16"):
        load_segmenter(ModelFolder(model.path, card), "learned", "cpu")
