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
    torch.testing.assert_close(StainJitter(0, 0)(pixels), pixels, atol=1e-5, rtol=1e-4)


def test_glass_without_shift_stays_white() -> None:
    white = torch.ones(1, 3, 4, 4)
    torch.testing.assert_close(StainJitter(0.5, 0)(white), white)


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30)
def test_amounts_of_stain_are_scaled_and_shifted_and_nothing_else(seed: int) -> None:
    jitter = StainJitter(0.2, 0.02)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = jitter.make_params([])
    assert (drawn["scale"] - 1).abs().max() <= 0.2
    assert drawn["shift"].abs().max() <= 0.02
    pixels = tissue(1)
    varied = jitter.transform(pixels, drawn)
    assert 0 <= varied.min() <= varied.max() <= 1
    open_ = varied < 1  # what turned white has lost its amounts
    density, wanted = -varied.log(), -pixels.log()
    to_hed = jitter._to_hed
    found = torch.einsum("nchw,cs->nshw", density, to_hed)
    expected = torch.einsum("nchw,cs->nshw", wanted, to_hed)
    expected = expected * drawn["scale"][:, None, None] + drawn["shift"][:, None, None]
    whole = open_.all(dim=1, keepdim=True).expand_as(found)
    torch.testing.assert_close(found[whole], expected[whole], atol=1e-4, rtol=1e-3)


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
