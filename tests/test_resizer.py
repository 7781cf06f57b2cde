"""The learned resizer: starts as its base filter, takes any size, can learn."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.models import small_spec
from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.cards import SegmenterCard, find_model
from wsi_pipeline.models.flops import count_flops
from wsi_pipeline.models.resizer import BASES, Resizer, group_norm
from wsi_pipeline.models.scoring import load_selector
from wsi_pipeline.models.segmenter import SegmentNet, load_segmenter
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.models.weights import load_state
from wsi_pipeline.training.datasets import load_dataset
from wsi_pipeline.training.segment import train_segment

sides = st.integers(1, 24)


def _base(image: Tensor, size: tuple[int, int], base: str) -> Tensor:
    """What each base is, written out."""
    if base == "area":
        return functional.adaptive_avg_pool2d(image, size)
    if base == "antialias-bilinear":
        return functional.interpolate(image, size, mode="bilinear", antialias=True)
    return functional.interpolate(image, size, mode=base, align_corners=False)


def _trained(base: str = "bilinear", blocks: int = 1) -> Resizer:
    """A resizer whose weights and statistics are anything, in eval mode."""
    torch.manual_seed(0)
    resizer = Resizer(features=4, blocks=blocks, base=base)
    for name, value in resizer.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.3 + ("var" in name))
    return resizer.eval()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=15)
@given(h=sides, w=sides, to_h=sides, to_w=sides)
def test_it_starts_as_its_base_filter_at_any_size_up_and_down(
    base: str, training: bool, h: int, w: int, to_h: int, to_w: int
) -> None:
    image = torch.rand(2, 3, h, w)
    with torch.no_grad():
        out = Resizer(features=4, base=base).train(training)(image, (to_h, to_w))
    assert torch.equal(out, _base(image, (to_h, to_w), base))


@pytest.mark.parametrize("base", BASES)
@settings(max_examples=10)
@given(h=sides, w=sides, to_h=sides, to_w=sides, value=st.floats(-2, 2))
def test_a_constant_image_stays_constant_even_after_training(
    base: str, h: int, w: int, to_h: int, to_w: int, value: float
) -> None:
    image = torch.full((1, 3, h, w), value)
    with torch.no_grad():
        start = Resizer(features=4, base=base)(
            image.expand(2, -1, -1, -1), (to_h, to_w)
        )
        later = _trained(base)(image, (to_h, to_w))
    # a filter's weights sum to 1 but for rounding
    assert torch.allclose(start, torch.full_like(start, value), atol=1e-6)
    assert torch.allclose(later, later[..., :1, :1].expand_as(later), atol=1e-5)


def test_area_averages_the_pixels_of_each_cell() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    out = Resizer(base="area")(image, (2, 2))
    assert out[0, 2].tolist() == [[2.5, 4.5], [10.5, 12.5]]


@pytest.mark.parametrize("base", BASES)
def test_at_equal_sizes_it_adds_what_the_net_makes_of_the_image(base: str) -> None:
    resizer = _trained(base)
    image = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        assert torch.equal(Resizer(base=base)(image, (9, 11)), image)
        features = resizer.before(image)
        features = features + resizer.after(resizer.blocks(features))
        wanted = image + resizer.last(features)
        assert torch.equal(resizer(image, (9, 11)), wanted)
    assert not torch.allclose(wanted, image, atol=0.1)


def test_at_equal_sizes_nothing_is_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(functional, "interpolate", refuse)
    Resizer()(torch.rand(1, 3, 6, 5), (6, 5))
    with pytest.raises(AssertionError):
        Resizer()(torch.rand(1, 3, 6, 5), (5, 6))


def test_features_are_resized_between_the_convolutions() -> None:
    resizer = _trained("area", blocks=0)
    image = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        features = functional.adaptive_avg_pool2d(resizer.before(image), (4, 6))
        wanted = _base(image, (4, 6), "area")
        wanted = wanted + resizer.last(features + resizer.after(features))
        assert torch.equal(resizer(image, (4, 6)), wanted)


@pytest.mark.parametrize(
    ("features", "blocks", "count"),
    [(16, 1, 12_035), (16, 0, 12_035 - 4_672), (16, 3, 12_035 + 2 * 4_672)],
)
def test_parameters(features: int, blocks: int, count: int) -> None:
    # 7 x 7 from 3: 2352 + 16; 1 x 1: 256 + 16; norm: 32; block: 2 x (2304 + 32);
    # 3 x 3 and norm: 2304 + 32; 7 x 7 to 3: 2352 + 3
    resizer = Resizer(features, blocks)
    assert sum(p.numel() for p in resizer.parameters()) == count


def test_flops() -> None:
    # multiply-adds per pixel before (2352 + 256) and after (3 x 2304 + 2352) resizing
    wanted = 2 * (16 * 16 * 2608 + 8 * 8 * 9264)
    assert count_flops(Resizer(), torch.rand(1, 3, 16, 16), (8, 8)) == wanted


@pytest.mark.parametrize("base", BASES)
def test_gradients_reach_the_last_layer_at_once_and_all_after_a_step(
    base: str,
) -> None:
    torch.manual_seed(0)
    resizer = Resizer(base=base)
    image, target = torch.rand(2, 3, 16, 20, requires_grad=True), torch.rand(2, 3, 8, 8)
    optimizer = torch.optim.SGD(resizer.parameters(), lr=0.1)
    functional.mse_loss(resizer(image, (8, 8)), target).backward()
    assert image.grad is not None
    assert bool((image.grad != 0).any())
    moving = {
        name for name, p in resizer.named_parameters() if bool((p.grad != 0).any())
    }
    assert moving == {"last.weight", "last.bias"}
    optimizer.step()
    optimizer.zero_grad()
    functional.mse_loss(resizer(image, (8, 8)), target).backward()
    for name, p in resizer.named_parameters():
        assert p.grad is not None
        assert bool(torch.isfinite(p.grad).all()), name
        assert bool((p.grad != 0).any()), name


def test_gradients_equal_finite_differences() -> None:
    resizer = _trained().double()
    image = torch.rand(1, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resizer(x, (3, 6)), image)


def test_it_learns_to_sharpen() -> None:
    torch.manual_seed(0)
    image = torch.rand(4, 3, 16, 16)
    target = 1.5 * image - 0.5 * functional.avg_pool2d(image, 3, 1, 1)
    resizer = Resizer(features=8)
    optimizer = torch.optim.Adam(resizer.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = functional.mse_loss(resizer(image, (16, 16)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("base", BASES)
def test_bfloat16_autocast_keeps_the_base_exact_on_the_cpu(base: str) -> None:
    image = torch.rand(2, 3, 17, 12)
    resizer = Resizer(features=4, base=base)
    with torch.autocast("cpu", torch.bfloat16):
        out = resizer(image, (6, 9))
        out.sum().backward()
    assert out.dtype == torch.float32
    assert torch.equal(out, _base(image, (6, 9), base))
    trained = _trained(base)
    with torch.no_grad():
        wanted = trained(image, (6, 9))
        with torch.autocast("cpu", torch.bfloat16):
            got = trained(image, (6, 9))
    # 8 bits of mantissa in each of 8 convolutions
    assert torch.allclose(got, wanted, rtol=8 * 2**-8, atol=8 * 2**-8)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_images_dtype_comes_out(base: str, dtype: torch.dtype) -> None:
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64).to(dtype)
    resizer = Resizer(features=4, base=base).to(dtype).eval()
    with torch.no_grad():
        out = resizer(image, (5, 6))
    assert out.dtype == dtype
    fine = image if dtype == torch.float64 else image.float()
    assert torch.equal(out, _base(fine, (5, 6), base).to(dtype))


@pytest.mark.parametrize("base", ["nearest", "antialias-area", ""])
def test_an_unknown_base_lists_those_there_are(base: str) -> None:
    with pytest.raises(UnknownNameError, match="bilinear, bicubic, area, antialias"):
        Resizer(base=base)


def test_it_can_be_copied_and_sent_to_another_process() -> None:
    image = torch.rand(1, 3, 8, 8)
    resizer = _trained("area")
    with torch.no_grad():
        wanted = resizer(image, (4, 5))
        again = pickle.loads(pickle.dumps(resizer))  # noqa: S301  # our own bytes
        assert torch.equal(again(image, (4, 5)), wanted)
        assert torch.equal(copy.deepcopy(resizer)(image, (4, 5)), wanted)


def test_batch_norm_would_mix_the_patches_of_a_batch() -> None:
    images = torch.rand(3, 3, 16, 16)
    for norm, apart in ((torch.nn.BatchNorm2d, False), (group_norm, True)):
        torch.manual_seed(0)
        resizer = Resizer(norm=norm).train()
        torch.nn.init.normal_(resizer.last.weight, std=0.1)
        with torch.no_grad():
            together, alone = (resizer(x, (8, 8))[:1] for x in (images, images[:1]))
        assert torch.allclose(together, alone, atol=1e-5) == apart


# in a segmenter


def _card(architecture: dict[str, object]) -> SegmenterCard:
    return SegmenterCard(
        sha256="0",
        mpp=1,
        region_px=64,
        nodes=16,
        architecture=architecture,
        training={},
        metrics={},
    )


@pytest.mark.parametrize(
    ("stored", "meant"),
    [(False, ""), (True, "bilinear"), ("", ""), ("area", "area"), (None, "")],
)
def test_cards_state_the_base_or_as_older_ones_whether_there_is_one(
    stored: object, meant: str
) -> None:
    architecture = small_spec().to_json() | {"resizer": stored}
    if stored is None:
        del architecture["resizer"]
    spec = SegmenterSpec.from_card(_card(architecture), Path("x"))
    assert spec == small_spec(resizer=meant)
    # what is written is read again as it was
    assert SegmenterSpec.from_card(_card(spec.to_json()), Path("x")) == spec


def test_a_card_with_an_unknown_base_is_refused_with_its_file() -> None:
    architecture = small_spec().to_json() | {"resizer": "sinc"}
    with pytest.raises(ModelError, match=r"x: .*'sinc'; there are: bilinear"):
        SegmenterSpec.from_card(_card(architecture), Path("x"))


@pytest.mark.parametrize("base", BASES)
def test_the_spec_names_the_base_of_the_nets_resizer(base: str) -> None:
    net = SegmentNet(small_spec(resizer=base), "uniform")
    assert net.resizer is not None
    assert net.resizer.base == base


@pytest.mark.parametrize("name", ["glas", "synthetic"])
def test_shipped_models_have_no_resizer_and_load(name: str) -> None:
    model = find_model(name)
    assert load_segmenter(model, "uniform", "cpu").resizer is None
    net = load_selector(model)
    assert (net.shape.resizer, net.shape.resized_px) == ("", 0)
    assert not any("resizer" in key for key in net.state_dict())


def test_training_a_segmenter_moves_its_resizer_and_the_card_names_it(
    tmp_path: Path,
) -> None:
    data = load_dataset("synthetic", None, images=2)
    with pytest.raises(UnknownNameError, match="'sinc'; there are: bilinear"):
        train_segment(data, tmp_path / "none", SegmenterSpec(6, resizer="sinc"))
    assert not (tmp_path / "none").exists()
    wanted = SegmenterSpec(6, nodes=16, strategies=("uniform",), resizer="area")
    card = train_segment(data, tmp_path, wanted, steps=2, batch=2)
    spec = SegmenterSpec.from_card(card, tmp_path)
    assert spec.resizer == "area"
    net = SegmentNet(spec, "uniform")
    load_state(net, tmp_path / "segmenter.safetensors", prefix="uniform.")
    assert net.resizer is not None
    assert bool(net.resizer.last.weight.any())
