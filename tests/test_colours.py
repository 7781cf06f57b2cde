"""Colours of training regions: stains in HED space, then the scanner."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.training.colours import StainJitter, vary_colours


def tissue(n: int = 2, side: int = 16) -> torch.Tensor:
    """Random pixels, (n, 3, side, side), none black or white."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 + 0.8 * torch.rand(n, 3, side, side, generator=generator)


def test_nothing_changes_at_strength_zero() -> None:
    pixels = tissue()
    still = StainJitter(0, 0, 0)(pixels)
    torch.testing.assert_close(still, pixels, atol=1e-5, rtol=1e-4)


def test_glass_stays_white() -> None:
    white = torch.ones(1, 3, 4, 4)
    torch.testing.assert_close(StainJitter()(white), white)


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30)
def test_amounts_of_stain_are_scaled_and_nothing_else(seed: int) -> None:
    jitter = StainJitter(0.4, 0.1, 0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = jitter.make_params([])
    amounts = drawn["amounts"]
    assert amounts.log().abs().max() <= 0.5 + 1e-6
    assert amounts.log().max() - amounts.log().min() <= 0.2 + 1e-6
    pixels = tissue(1)
    varied = jitter.transform(pixels, drawn)
    assert 0 <= varied.min() <= varied.max() <= 1
    before, after = (
        torch.einsum("nchw,cs->nshw", -image.log(), jitter._to_hed)
        for image in (pixels, varied)
    )
    # what turned white has lost its amounts
    whole = (varied < 1).all(dim=1, keepdim=True).expand_as(after)
    expected = before * amounts[:, None, None]
    torch.testing.assert_close(after[whole], expected[whole], atol=1e-4, rtol=1e-3)


def test_hues_scale_the_density_of_each_channel() -> None:
    jitter = StainJitter(0, 0, 0.3)
    assert len(set(jitter.make_params([])["hues"].tolist())) == 3
    hues = torch.tensor([0.7, 1.0, 1.4])
    pixels = tissue(1)
    expected = pixels ** hues[:, None, None]
    found = jitter.transform(pixels, {"amounts": torch.ones(3), "hues": hues})
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_the_same_seed_varies_alike_and_leaves_the_generator_alone() -> None:
    pixels = tissue(3)
    before = torch.get_rng_state()
    varied = vary_colours(pixels, [5, 6, 5])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(varied, vary_colours(pixels, [5, 6, 5]))
    same = vary_colours(pixels[:1].expand(2, -1, -1, -1), [7, 7])
    assert torch.equal(same[0], same[1])
    other = vary_colours(pixels[:1].expand(2, -1, -1, -1), [7, 8])
    assert (other[0] - other[1]).abs().max() > 0.01
    assert 0 <= varied.min() <= varied.max() <= 1


def test_gradients_pass() -> None:
    pixels = tissue(1).requires_grad_()
    vary_colours(pixels, [1]).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_colours(dtype: torch.dtype) -> None:
    pixels = tissue(1)
    plain = vary_colours(pixels, [3])
    with torch.autocast("cpu", dtype=dtype):
        cast = vary_colours(pixels, [3])
    torch.testing.assert_close(cast, plain, atol=1e-5, rtol=1e-5)
