"""The patch selector: cross-attention that scores patches and aggregates the chosen.

One query token per task; the attention that pools the chosen patches is the score that
chooses them (iterative patch selection).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from wsi_pipeline.errors import ConfigError, ModelError, UnknownNameError
from wsi_pipeline.models.encoders import build_encoder
from wsi_pipeline.models.positions import check_width, encode_positions
from wsi_pipeline.models.resizer import check_base

# Any: JSON values
_SINCE: dict[str, Any] = {"resizer": "", "resized_px": 0, "position": False}
"""What older cards do not state."""


@dataclasses.dataclass(frozen=True)
class SelectorShape:
    """Sizes of a selector, as its card's ``architecture`` holds them.

    Parameters
    ----------
    encoder : str
        Name in the table of encoders.
    width : int
        Length D of an embedding.
    heads : int
        Attention heads H.
    key_width : int
        Length of a head's keys and values.
    inner_width : int
        Hidden width of the MLP.
    resizer : str
        Base filter of a learned `Resizer` before the encoder; "" for none.
    resized_px : int
        Side to which it brings the patches; 0 where there is none.
    position : bool
        Whether attention also sees where on the slide a patch lies.

    Raises
    ------
    UnknownNameError
        If there is no such base filter.
    ConfigError
        If there is a resizer without a side, or a side without a resizer; or if places
        do not fit the width.
    """

    encoder: str = "small"
    width: int = 128
    heads: int = 4
    key_width: int = 32
    inner_width: int = 256
    resizer: str = ""
    resized_px: int = 0
    position: bool = False

    def __post_init__(self) -> None:
        if self.resizer:
            check_base(self.resizer)
        if self.position:
            check_width(self.width)
        if bool(self.resizer) != (self.resized_px > 0):
            raise ConfigError(
                "a resizer and the side of what it makes are given together "
                f"(--resizer, --resized-px); got {self.resizer!r} and "
                f"{self.resized_px}"
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a card's ``architecture``; older ones lack the newest keys.

        Raises
        ------
        ModelError
            If a key is missing, unknown, or does not fit.
        """
        data = _SINCE | dict(data)
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        if set(data) != set(fields):
            raise ModelError(
                f"selector architecture: got keys {sorted(data)}, "
                f"expected {sorted(fields)}"
            )
        for name, kind in fields.items():
            least = 0 if name == "resized_px" else 1
            if type(data[name]) is not kind or (kind is int and data[name] < least):
                raise ModelError(
                    f"selector architecture: {name} = {data[name]!r} does not fit"
                )
        try:
            return cls(**data)
        except (ConfigError, UnknownNameError) as error:
            raise ModelError(f"selector architecture: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """As stored in the card."""
        return dataclasses.asdict(self)


class CrossAttention(nn.Module):
    """Learnable queries that attend to a bag of patch embeddings.

    Parameters
    ----------
    width : int
        Length D of an embedding.
    tokens : int
        Number T of queries, one per task.
    heads, key_width, inner_width : int
        See `SelectorShape`.
    dropout : float
        After the softmax, after the output projection, and after the MLP.

    Notes
    -----
    The residual is the query, not the patches; keys are not normalised; the projections
    have no bias.

    References
    ----------
    Bergner et al., "Iterative Patch Selection for High-Resolution Image Recognition",
    ICLR 2023, and its official code (benbergner/ips, 4c17c1d).
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        heads: int,
        key_width: int,
        inner_width: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.heads, self.key_width = heads, key_width
        bound = key_width**-0.5
        self.queries = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.uniform_(self.queries, -bound, bound)
        self.q = nn.Linear(width, heads * key_width, bias=False)
        self.k = nn.Linear(width, heads * key_width, bias=False)
        self.v = nn.Linear(width, heads * key_width, bias=False)
        self.fc = nn.Linear(heads * key_width, width, bias=False)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, inner_width)
        self.shrink = nn.Linear(inner_width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def scorer(self) -> Tensor:
        """The matrix U of the folded scorer: logits of patches x are x U.

        Returns
        -------
        (D, C) tensor
            C = H x T channels, the token running fastest.
        """
        width = self.queries.shape[2]
        q = self.q(self.queries[0]).view(-1, self.heads, self.key_width)  # (T, H, d)
        k = self.k.weight.view(self.heads, self.key_width, width)  # (H, d, D)
        folded = torch.einsum("thd,hdw->wht", q, k) * self.key_width**-0.5
        scorer: Tensor = folded.reshape(width, -1)  # (D, H * T)
        return scorer

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Aggregate bags: (b, n, D) to one token per task, (b, T, D).

        Parameters
        ----------
        x : (b, n, D) tensor
            Embeddings, n at least 1.
        real : (b, n) bool tensor, optional
            False where a row only pads a short bag.
        """
        logits = x @ self.scorer()  # (b, n, C)
        if real is not None:
            logits = logits.masked_fill(~real[:, :, None], -torch.inf)
        weights = self.dropout(logits.softmax(1))
        return self.finish(weights.transpose(1, 2) @ x)

    def finish(self, pooled: Tensor) -> Tensor:
        """Turn what the channels have pooled into tokens: (b, C, D) to (b, T, D).

        Parameters
        ----------
        pooled : (b, C, D) tensor
            Mean embedding per channel, weighted by its attention. Values are linear in
            embeddings, so that the value of the mean is the mean of the values.
        """
        b, _, width = pooled.shape
        tokens = self.queries.shape[1]
        means = pooled.view(b, self.heads, tokens, width)
        v = self.v.weight.view(self.heads, self.key_width, width)  # (H, d, D)
        values = torch.einsum("bhtw,hdw->bthd", means, v)
        joined = self.fc(values.reshape(b, tokens, -1))  # (b, T, H * d) to (b, T, D)
        y: Tensor = self.norm1(self.queries + self.dropout(joined))
        inner = self.dropout(self.shrink(torch.relu(self.expand(y))))
        z: Tensor = self.norm2(y + inner)
        return z


class SelectorNet(nn.Module):
    """Encoder, cross-attention and one linear head per task.

    Parameters
    ----------
    shape : SelectorShape
        Sizes.
    tasks : tuple of str
        What each token predicts: the probability that the slide shows it.
    """

    def __init__(self, shape: SelectorShape, tasks: tuple[str, ...]) -> None:
        super().__init__()
        if not tasks:
            raise ModelError("a selector needs at least one task, got none")
        self.shape, self.tasks = shape, tasks
        self.encoder = build_encoder(
            shape.encoder, shape.width, shape.resizer, shape.resized_px
        )
        self.attention = CrossAttention(
            shape.width,
            len(tasks),
            shape.heads,
            shape.key_width,
            shape.inner_width,
        )
        self.outputs = nn.ModuleList(nn.Linear(shape.width, 1) for _ in tasks)

    @property
    def channels(self) -> int:
        """Number C of attention channels, heads x tasks."""
        return self.shape.heads * len(self.tasks)

    def forward(
        self, patches: Tensor, real: Tensor, places_um: Tensor | None = None
    ) -> Tensor:
        """Logit per task of bags of patches: (b, n, 3, p, p) to (b, T).

        Parameters
        ----------
        real : (b, n) bool tensor
            False where a patch only pads a short bag.
        places_um : (b, n, 2) tensor, optional
            See `place`.
        """
        b, n = real.shape
        x = self.embed(patches.flatten(0, 1)).view(b, n, -1)
        return self.predict(x, real, places_um)

    def embed(self, patches: Tensor) -> Tensor:
        """Encode the pixels of patches: (n, 3, p, p) uint8 to (n, D)."""
        x: Tensor = self.encoder(patches)
        return x

    def place(self, x: Tensor, places_um: Tensor | None) -> Tensor:
        """Add to embeddings where their patches lie, for attention to see.

        Parameters
        ----------
        x : (..., D) tensor
            What `embed` gave; kept without places wherever it is kept.
        places_um : (..., 2) tensor, optional
            As `encode_positions` takes them.

        Returns
        -------
        (..., D) tensor
            The embeddings as they are where the selector knows nothing of places.

        Raises
        ------
        ModelError
            If places are missing, not wanted, or not one per embedding.
        """
        wanted = (*x.shape[:-1], 2) if self.shape.position else None
        got = None if places_um is None else tuple(places_um.shape)
        if got != wanted:
            raise ModelError(
                f"places of patches: got {got or 'none'}, this selector wants "
                f"{wanted or 'none'}"
            )
        if places_um is None:
            return x
        return x + encode_positions(places_um, x.shape[-1]).to(x.dtype)

    def logits(self, x: Tensor, places_um: Tensor | None = None) -> Tensor:
        """Attention logits of embeddings: (n, D) to (n, C), at least float32.

        Parameters
        ----------
        places_um : (n, 2) tensor, optional
            See `place`.
        """
        x = self.place(x.to(torch.promote_types(x.dtype, torch.float32)), places_um)
        return x @ self.attention.scorer().to(x.dtype)

    def predict(
        self, x: Tensor, real: Tensor | None = None, places_um: Tensor | None = None
    ) -> Tensor:
        """Logit per task of bags: (b, n, D) to (b, T).

        Parameters
        ----------
        real : (b, n) bool tensor, optional
            False where a row only pads a short bag.
        places_um : (b, n, 2) tensor, optional
            See `place`.
        """
        return self.answer(self.attention(self.place(x, places_um), real))

    def answer(self, tokens: Tensor) -> Tensor:
        """Logit per task of what attention made of bags: (b, T, D) to (b, T)."""
        return answer_tokens(self.outputs, tokens)


def answer_tokens(outputs: nn.ModuleList, tokens: Tensor) -> Tensor:
    """Each head to the token of its task: T heads and (b, T, D) to (b, T)."""
    return torch.cat([head(tokens[:, t]) for t, head in enumerate(outputs)], dim=1)
