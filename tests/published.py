"""Iterative patch selection as published, step by step, to compare with."""

import math

import torch
from torch import Tensor

from wsi_pipeline.models.positions import encode_positions
from wsi_pipeline.models.selector import CrossAttention, SelectorNet


def attention_scores(attention: CrossAttention, x: Tensor) -> Tensor:
    """Softmax of q k over the patches, mean over heads, then over tokens."""
    n, tokens = len(x), attention.queries.shape[1]
    size = (-1, attention.heads, attention.key_width)
    q = attention.q(attention.queries[0]).view(size).transpose(0, 1)  # (H, T, d)
    k = attention.k(x).view(size).transpose(0, 1)  # (H, n, d)
    weights = (q / attention.key_width**0.5 @ k.transpose(1, 2)).softmax(-1)
    assert weights.shape == (attention.heads, tokens, n)
    return weights.mean(0).mean(0)


@torch.no_grad()
def select_literally(
    net: SelectorNet,
    patches: Tensor,
    m: int,
    i: int,
    order: Tensor,
    places_um: Tensor | None = None,
) -> set[int]:
    """Ids that the buffer of M holds after all rounds of I; encodes as it goes."""
    n = len(patches)
    if m >= n:
        return set(range(n))
    shuffled = patches[order]
    ids = torch.arange(n)
    memory, memory_ids = net.embed(shuffled[:m]), ids[:m]
    for round_ in range(math.ceil((n - m) / i)):
        start = m + round_ * i
        stop = min(start + i, n)
        x = torch.cat([memory, net.embed(shuffled[start:stop])])
        all_ids = torch.cat([memory_ids, ids[start:stop]])
        seen = x  # places are added for the scores, the buffer stays without them
        if places_um is not None:
            seen = x + encode_positions(places_um[order][all_ids], x.shape[1])
        top = attention_scores(net.attention, seen).topk(m).indices
        memory, memory_ids = x[top], all_ids[top]
    return set(order[memory_ids].tolist())
