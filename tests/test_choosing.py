"""The choice among patches: exact, and by the published buffer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.published import attention_scores, select_literally
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.choosing import Choice, choose_as_published, choose_patches
from wsi_pipeline.models.selector import SelectorNet, SelectorShape


def logits_of(n: int, channels: int, seed: int = 0, spread: float = 2.0):
    return np.random.default_rng(seed).normal(0, spread, (n, channels))


def in_order(logits, m: int, chunk: int = 7) -> Choice:
    return choose_as_published(logits, m, chunk, np.arange(len(logits)))


def ids_of(choice: Choice) -> list[int]:
    return np.flatnonzero(choice.chosen).tolist()


def peaky_net(heads: int, tokens: int, *, position: bool = False) -> SelectorNet:
    """Heads that disagree, behind an encoder that costs next to nothing, in float64."""
    torch.manual_seed(5)
    shape = SelectorShape(
        width=32, heads=heads, key_width=8, inner_width=16, position=position
    )
    net = SelectorNet(shape, tuple(f"task {t}" for t in range(tokens)))
    net.encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.LayerNorm(32))
    with torch.no_grad():
        net.attention.queries *= 20
    return net.double().eval()


# the exact choice


@pytest.mark.parametrize("m", [1, 5, 59, 60, 61])
def test_one_channel_is_the_plain_top_m(m: int) -> None:
    logits = logits_of(60, 1)
    expected = np.zeros(60, bool)
    expected[np.argsort(-logits[:, 0])[:m]] = True
    assert (choose_patches(logits, m).chosen == expected).all()


def test_score_is_the_mean_over_channels_of_a_softmax_over_all_patches() -> None:
    logits = logits_of(50, 8)
    choice = choose_patches(logits, 7)
    weights = torch.from_numpy(logits).softmax(0).mean(1).numpy()
    np.testing.assert_allclose(choice.score, weights, rtol=1e-13)
    assert choice.score.sum() == pytest.approx(1, abs=1e-12)
    assert (np.sort(choice.rank) == np.arange(50)).all()
    assert (
        choice.score[np.argsort(choice.rank)][:-1] >= np.sort(-choice.score)[1:] * -1
    ).all()


def test_two_heads_choose_what_neither_buffer_of_two_would() -> None:
    # the example of the method note: over all three patches b beats c and a
    a, b, c = (4, 1), (1, 3.5), (8, 0.01)
    choice = choose_patches(np.log([a, b, c]), 1)
    np.testing.assert_allclose(choice.score, [0.2648, 0.4266, 0.3086], atol=5e-4)
    assert choice.chosen.tolist() == [False, True, False]


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 40),
    channels=st.integers(1, 6),
    m=st.integers(1, 45),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1e-9, 1.0, 80.0]),
)
def test_choice_follows_patches_through_any_order(
    n: int, channels: int, m: int, seed: int, spread: float
) -> None:
    logits = logits_of(n, channels, seed, spread)
    choice = choose_patches(logits, m)
    assert choice.chosen.sum() == min(n, m)
    assert choice.score.sum() == pytest.approx(1, abs=1e-9)
    assert (choice.rank[choice.chosen] < m).all()
    order = np.random.default_rng(seed).permutation(n)
    again = choose_patches(logits[order], m)
    # the sum of the softmax may round otherwise in another order: compare by value
    threshold = np.sort(choice.score)[-min(n, m)]
    clear = np.abs(choice.score - threshold) > 1e-12
    assert (again.chosen == choice.chosen[order])[clear[order]].all()


def test_ties_go_to_the_lower_patch_id() -> None:
    logits = np.ones((9, 4))
    logits[7] = 2
    choice = choose_patches(logits, 4)
    assert np.flatnonzero(choice.chosen).tolist() == [0, 1, 2, 7]
    assert choice.rank.tolist() == [1, 2, 3, 4, 5, 6, 7, 0, 8]


@pytest.mark.parametrize("choose", [choose_patches, in_order])
@pytest.mark.parametrize("n", [0, 1])
def test_no_patch_and_one_patch(n: int, choose) -> None:
    choice = choose(np.zeros((n, 3), np.float32), 5)
    assert choice.score.tolist() == [1.0] * n
    assert choice.rank.tolist() == [0] * n
    assert choice.chosen.tolist() == [True] * n


def test_logits_of_plus_and_minus_80_neither_overflow_nor_lose_the_order() -> None:
    logits = np.array([[80.0], [-80.0], [79.0], [0.0]], np.float32)
    choice = choose_patches(logits, 2)
    assert choice.rank.tolist() == [0, 3, 1, 2]
    assert np.isfinite(choice.score).all()
    # 80 against 79: e / (e + 1) of the attention
    assert choice.score[0] == pytest.approx(np.e / (np.e + 1), rel=1e-12)


@pytest.mark.parametrize("choose", [choose_patches, in_order])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_no_number_is_refused_by_patch(value: float, choose) -> None:
    logits = np.zeros((5, 2), np.float32)
    logits[3, 1] = value
    with pytest.raises(ModelError, match=r"1 of 5 patches, the first is patch 3"):
        choose(logits, 2)


@pytest.mark.parametrize(
    "choose", [choose_patches, lambda logits, m: in_order(logits, m, 4096)]
)
def test_planted_patches_are_found_wherever_they_are(choose) -> None:
    n, m = 100_003, 64
    logits = logits_of(n, 4, spread=1.0)
    # first and last, around the borders of the buffer, of chunks, and of the last one
    places = [0, 63, 64, 64 + 4095, 64 + 4096, 50_000, 64 + 24 * 4096, n - 2, n - 1]
    logits[places] += 12
    assert choose(logits, m).chosen[places].all()


@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (4, 1), (2, 3)])
def test_batches_and_order_of_encoding_do_not_change_the_choice(
    heads: int, tokens: int
) -> None:
    n, m = 70, 9
    net = SelectorNet(SelectorShape(width=32, heads=heads), ("t",) * tokens)
    net = net.double().eval()
    patches = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    seen = []
    with torch.no_grad():
        for batch in (1, 7, 64, n):
            order = torch.randperm(n)
            x = torch.empty(n, 32, dtype=torch.float64)
            for ids in order.split(batch):
                x[ids] = net.embed(patches[ids])
            choice = choose_patches(net.logits(x).numpy(), m)
            seen.append((ids_of(choice), net.predict(x[choice.chosen][None])))
    for ids, prediction in seen[1:]:
        assert ids == seen[0][0]
        torch.testing.assert_close(prediction, seen[0][1], rtol=0, atol=1e-12)


# bf16: a batch of another size may take another kernel, which rounds otherwise
@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_rounding_of_the_batch_moves_only_patches_at_the_threshold(
    dtype: torch.dtype, near: float
) -> None:
    torch.manual_seed(1)
    n, m = 96, 12
    net = SelectorNet(SelectorShape(width=32), ("t",)).to(dtype).eval()
    patches = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)

    def choose(batch: int) -> Choice:
        with torch.no_grad():
            parts = [net.logits(net.embed(part)) for part in patches.split(batch)]
        return choose_patches(torch.cat(parts).numpy(), m)

    whole = choose(n)
    for batch in (1, 7, 64):
        other = choose(batch)
        np.testing.assert_allclose(other.score, whole.score, rtol=near)
        threshold = whole.score[whole.rank == m - 1]
        moved = whole.score[other.chosen != whole.chosen]
        assert (np.abs(moved / threshold - 1) < near).all()
    torch.manual_seed(2)  # nor does any seed matter
    again = choose(n)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(again, whole, strict=True))


# the published buffer


@pytest.mark.parametrize(("heads", "tokens"), [(1, 1), (4, 1), (2, 3), (8, 1)])
@pytest.mark.parametrize("m", [1, 10, 59, 60, 61])
def test_the_buffer_holds_what_it_does_when_encoding_round_by_round(
    heads: int, tokens: int, m: int
) -> None:
    net = peaky_net(heads, tokens)
    n = 60
    patches = torch.randn(n, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        logits = net.logits(net.embed(patches)).numpy()
    for seed, chunk in enumerate((1, 7, m, n)):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        choice = choose_as_published(logits, m, chunk, order.numpy())
        literal = select_literally(net, patches, m, chunk, order)
        assert ids_of(choice) == sorted(literal)


def test_places_count_in_every_round_but_the_buffer_does_not_keep_them() -> None:
    net = peaky_net(4, 1, position=True)
    patches = torch.randn(60, 3, 2, 2, dtype=torch.float64)
    places = torch.rand(60, 2, dtype=torch.float64) * 30_000
    with torch.no_grad():
        logits = net.logits(net.embed(patches), places).numpy()
    order = torch.randperm(60)
    choice = choose_as_published(logits, 10, 7, order.numpy())
    literal = select_literally(net, patches, 10, 7, order, places)
    assert ids_of(choice) == sorted(literal)
    assert literal != select_literally(net, patches, 10, 7, order)


def test_the_score_is_the_published_mean_over_heads_then_tokens() -> None:
    net = peaky_net(4, 3)
    x = torch.randn(40, 32, dtype=torch.float64)
    with torch.no_grad():
        choice = choose_patches(net.logits(x).numpy(), 5)
        np.testing.assert_allclose(choice.score, attention_scores(net.attention, x))


@pytest.mark.parametrize("chunk", [1, 7, 12, 60])
@pytest.mark.parametrize("m", [1, 12, 59])
def test_with_one_channel_the_buffer_ends_with_the_plain_top_m(
    m: int, chunk: int
) -> None:
    logits = logits_of(60, 1)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(60)
        choice = choose_as_published(logits, m, chunk, order)
        exact = choose_patches(logits, m)
        assert ids_of(choice) == sorted(np.argsort(-logits[:, 0])[:m])
        assert (choice.rank == exact.rank).all()


def test_the_chunk_alone_changes_the_choice_between_three_patches() -> None:
    # the example of the method note: a beats b and c in pairs, b wins among three
    logits = np.log([(4, 1), (1, 3.5), (8, 0.01)])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        assert ids_of(choose_as_published(logits, 1, 1, np.array(order))) == [0]
        assert ids_of(choose_as_published(logits, 1, 2, np.array(order))) == [1]


def test_the_buffer_ranks_before_the_others_by_the_score_of_all_patches() -> None:
    logits = np.log([(4, 1), (1, 3.5), (8, 0.01)])
    choice = in_order(logits, 1, 1)
    exact = choose_patches(logits, 1)
    assert (choice.score == exact.score).all()
    assert choice.rank.tolist() == [0, 1, 2]
    assert exact.rank.tolist() == [2, 0, 1]


@pytest.mark.parametrize("chunk", [1, 4, 30])
def test_equal_patches_leave_the_lowest_ids_in_the_buffer(chunk: int) -> None:
    order = np.random.default_rng(0).permutation(30)
    choice = choose_as_published(np.ones((30, 5)), 7, chunk, order)
    assert ids_of(choice) == list(range(7))
    assert choice.rank.tolist() == list(range(30))


@pytest.mark.parametrize(("spread", "least"), [(0.03, 0.97), (0.5, 0.85)])
def test_the_buffer_nearly_finds_the_exact_choice_where_attention_is_flat(
    spread: float, least: float
) -> None:
    for seed in range(3):
        logits = logits_of(4000, 8, seed, spread)
        exact = choose_patches(logits, 100)
        order = np.random.default_rng(seed).permutation(4000)
        choice = choose_as_published(logits, 100, 100, order)
        assert (choice.chosen & exact.chosen).sum() >= least * 100
        kept, most = (c.score[c.chosen].sum() for c in (choice, exact))
        assert 0.99 * most <= kept <= most


@given(
    n=st.integers(2, 40),
    channels=st.integers(1, 4),
    m=st.integers(1, 12),
    chunk=st.integers(1, 15),
    seed=st.integers(0, 10_000),
)
def test_a_patch_that_fewer_than_m_beat_in_any_channel_is_kept_by_both(
    n: int, channels: int, m: int, chunk: int, seed: int
) -> None:
    # logits that share a part, so that some patches do dominate in all channels
    logits = logits_of(n, 1, seed) + logits_of(n, channels, seed + 1, 0.5)
    beaten = (logits[None] > logits[:, None]).any(2).sum(1)
    order = np.random.default_rng(seed).permutation(n)
    assert choose_patches(logits, m).chosen[beaten < m].all()
    assert choose_as_published(logits, m, chunk, order).chosen[beaten < m].all()
