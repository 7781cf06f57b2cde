"""Attention over all patches in one pass equals attention over all at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.pooling import OnlinePooling
from wsi_pipeline.models.selector import SelectorNet, SelectorShape

TASKS = ("cancer", "gland")


def small_net(*, position: bool = False) -> SelectorNet:
    torch.manual_seed(3)
    shape = SelectorShape(width=32, heads=4, key_width=8, position=position)
    return SelectorNet(shape, TASKS).double().eval()


def embeddings_with(net: SelectorNet, logits: Tensor) -> Tensor:
    """Random embeddings that get these attention logits: (n, C) to (n, D)."""
    x = torch.randn(len(logits), 32, dtype=torch.float64)
    with torch.no_grad():
        inverse = torch.linalg.pinv(net.attention.scorer())
        return x + (logits - net.logits(x)) @ inverse


def at_once(net: SelectorNet, x: Tensor) -> Tensor:
    """Tokens (1, T, D) by a softmax over all patches of queries times keys."""
    a = net.attention
    with torch.no_grad():
        q = a.q(a.queries[0]).view(2, 4, 8)
        k, v = (part(x).view(-1, 4, 8) for part in (a.k, a.v))
        weights = (torch.einsum("thd,nhd->thn", q, k) / 8**0.5).softmax(-1)
        y = a.norm1(
            a.queries[0] + a.fc(torch.einsum("thn,nhd->thd", weights, v).flatten(1))
        )
        return a.norm2(y + a.shrink(torch.relu(a.expand(y))))[None]


def pooled(net: SelectorNet, parts) -> Tensor:
    pooling = OnlinePooling(net)
    for part in parts:
        pooling.add(part)
    return pooling.tokens()


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_any_split_into_batches_equals_one_softmax_over_all(
    sizes: list[int], spread: float, seed: int
) -> None:
    net = small_net()
    torch.manual_seed(seed)
    x = torch.randn(sum(sizes), 32, dtype=torch.float64) * spread
    wanted = at_once(net, x)
    tokens = pooled(net, x.split(sizes))
    torch.testing.assert_close(tokens, wanted, rtol=0, atol=1e-10)
    with torch.no_grad():
        answer = net.answer(tokens)
        torch.testing.assert_close(answer, net.predict(x[None]), rtol=0, atol=1e-10)
        single = net.float()
        tokens = pooled(single, x.float().split(sizes))
        assert tokens.dtype == torch.float32
        wanted = single.attention(x.float()[None])
        torch.testing.assert_close(tokens, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", [0, 29, 59])
@pytest.mark.parametrize("outlier", [80.0, 1e4])
def test_large_logits_neither_overflow_nor_hide_the_others(
    outlier: float, place: int
) -> None:
    net = small_net()
    logits = torch.rand(60, 8, dtype=torch.float64) * 160 - 80
    logits[place] = outlier
    x = embeddings_with(net, logits)
    torch.testing.assert_close(
        pooled(net, x.split(7)), at_once(net, x), rtol=0, atol=1e-10
    )
    if outlier > 1000:  # its weight is 1, that of the others 0
        torch.testing.assert_close(pooled(net, x.split(7)), at_once(net, x[[place]]))
    single = net.float()
    tokens, wanted = pooled(single, x.float().split(7)), at_once(single, x.float())
    # neighbouring float32 around 80 are 7.6e-6 apart: both softmaxes are off by a few
    torch.testing.assert_close(tokens, wanted, rtol=0, atol=5e-5)


def test_thousands_of_light_patches_after_a_heavy_one_are_not_lost() -> None:
    # each weighs e^-17 of the first: float32 sums would not grow by any of them
    net = small_net()
    logits = torch.zeros(2001, 8, dtype=torch.float64)
    logits[0] = 17
    x = embeddings_with(net, logits)
    x[1:] += 3000 * (x[1] - x[1] @ _scored(net))
    wanted, heavy = at_once(net, x), at_once(net, x[:1])
    assert (wanted - heavy).abs().max() > 1e-3
    tokens = pooled(net.float(), x.float().split(1))
    torch.testing.assert_close(tokens.double(), wanted, rtol=0, atol=1e-5)


def _scored(net: SelectorNet) -> Tensor:
    """Projection of embeddings onto what the scorer looks at."""
    with torch.no_grad():
        scorer = net.attention.scorer()
        return scorer @ torch.linalg.pinv(scorer)


def test_one_patch_is_its_own_mean() -> None:
    net = small_net()
    x = torch.randn(1, 32, dtype=torch.float64)
    torch.testing.assert_close(pooled(net, [x]), at_once(net, x), rtol=0, atol=1e-10)


def test_no_patch_is_refused() -> None:
    with pytest.raises(ModelError, match="no patch was pooled"):
        pooled(small_net(), [])


def test_a_patch_that_is_no_number_is_refused() -> None:
    x = torch.randn(9, 32, dtype=torch.float64)
    x[4, 2] = torch.nan
    with pytest.raises(ModelError, match="over 9 patches is not finite"):
        pooled(small_net(), x.split(2))


def test_it_gives_the_logits_of_each_batch_and_keeps_no_graph() -> None:
    net = small_net()
    x = torch.randn(5, 32, dtype=torch.float64, requires_grad=True)
    pooling = OnlinePooling(net)
    logits = pooling.add(x)
    assert torch.equal(logits, net.logits(x))
    assert not logits.requires_grad
    assert not pooling.tokens().requires_grad


def test_places_are_pooled_as_they_are_scored() -> None:
    net = small_net(position=True)
    x = torch.randn(20, 32, dtype=torch.float64)
    places = torch.rand(20, 2, dtype=torch.float64) * 10_000
    pooling = OnlinePooling(net)
    for part in torch.arange(20).split(6):
        pooling.add(x[part], places[part])
    with torch.no_grad():
        wanted = net.predict(x[None], places_um=places[None])
        answer = net.answer(pooling.tokens())
    torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-10)
