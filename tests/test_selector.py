"""The selector: its attention, its folded scorer, its shape."""

import pytest
import torch

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.encoders import ENCODERS, build_encoder
from wsi_pipeline.models.selector import CrossAttention, SelectorNet, SelectorShape


def small_net(tasks: tuple[str, ...] = ("cancer", "gland")) -> SelectorNet:
    torch.manual_seed(3)
    return SelectorNet(SelectorShape(width=32, heads=4, key_width=8), tasks).eval()


# the attention


def test_folded_scorer_equals_queries_times_keys() -> None:
    net = small_net().double()
    attention = net.attention
    x = torch.randn(11, 32, dtype=torch.float64)
    q = attention.q(attention.queries[0]).view(2, 4, 8)
    k = attention.k(x).view(11, 4, 8)
    direct = torch.einsum("thd,nhd->nht", q, k) / 8**0.5
    torch.testing.assert_close(net.logits(x), direct.reshape(11, 8))


def test_projections_have_no_bias_and_norms_a_small_epsilon() -> None:
    attention = small_net().attention
    for name in ("q", "k", "v", "fc"):
        assert getattr(attention, name).bias is None
    assert attention.norm1.eps == attention.norm2.eps == 1e-6
    assert attention.queries.shape == (1, 2, 32)
    assert attention.queries.abs().max() <= 8**-0.5


def test_residual_is_the_query_so_patches_enter_through_values_only() -> None:
    attention = small_net().attention
    torch.nn.init.zeros_(attention.fc.weight)
    first = attention(torch.randn(1, 5, 32))
    second = attention(torch.randn(1, 9, 32))
    torch.testing.assert_close(first, second)


def test_aggregator_equals_a_plain_restatement() -> None:
    net = small_net().double()
    a = net.attention
    x = torch.randn(6, 32, dtype=torch.float64)
    weights = net.logits(x).view(6, 4, 2).softmax(0)  # n, heads, tokens
    values = a.v(x).view(6, 4, 8)
    for token in range(2):
        heads = [weights[:, h, token] @ values[:, h] for h in range(4)]
        y = a.norm1(a.queries[0, token] + a.fc(torch.cat(heads)))
        z = a.norm2(y + a.shrink(torch.relu(a.expand(y))))
        torch.testing.assert_close(a(x[None])[0, token], z)


def test_padding_rows_that_are_masked_change_nothing() -> None:
    net = small_net()
    x = torch.randn(1, 7, 32)
    padded = torch.cat([x, torch.full((1, 4, 32), 9.0)], dim=1)
    real = torch.arange(11)[None] < 7
    torch.testing.assert_close(net.predict(x), net.predict(padded, real))
    assert not torch.allclose(net.predict(x), net.predict(padded))


def test_dropout_only_while_training() -> None:
    net = small_net()
    x = torch.randn(1, 7, 32)
    assert torch.equal(net.predict(x), net.predict(x))
    net.train()
    assert not torch.equal(net.predict(x), net.predict(x))


def test_half_precision_embeddings_are_scored_in_float32() -> None:
    net = small_net()
    assert net.logits(torch.randn(3, 32).bfloat16()).dtype == torch.float32


# encoders and shape


@pytest.mark.parametrize("name", ENCODERS.names())
def test_encoders_do_not_look_at_the_neighbours_in_the_batch(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, 24).eval().double()
    patches = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        together = encoder(patches)
        alone = torch.cat([encoder(patches[i : i + 1]) for i in range(5)])
    assert together.shape == (5, 24)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_bytes_and_fractions_of_the_same_patch_embed_alike() -> None:
    encoder = build_encoder("small", 16).eval()
    patches = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(encoder(patches), encoder(patches.float() / 255))


def test_small_encoder_stays_small() -> None:
    count = sum(p.numel() for p in build_encoder("small", 128).parameters())
    assert 200_000 < count < 500_000


def test_unknown_encoder_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="small, resnet18"):
        build_encoder("vgg", 8)


def test_shape_survives_the_card() -> None:
    shape = SelectorShape("resnet18", 64, 8, 16, 100)
    assert SelectorShape.from_json(shape.to_json()) == shape


@pytest.mark.parametrize(
    "change", [{"width": "128"}, {"heads": 0}, {"colour": 1}, {"encoder": 3}]
)
def test_a_card_with_another_architecture_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="architecture"):
        SelectorShape.from_json(SelectorShape().to_json() | change)


def test_a_selector_needs_a_task() -> None:
    with pytest.raises(ModelError, match="at least one task"):
        small_net(())


def test_attention_takes_any_number_of_tokens_apart() -> None:
    attention = CrossAttention(16, 3, 2, 4, 8).eval()
    tokens = attention(torch.randn(2, 5, 16))
    assert tokens.shape == (2, 3, 16)
    assert not torch.allclose(tokens[:, 0], tokens[:, 1])
