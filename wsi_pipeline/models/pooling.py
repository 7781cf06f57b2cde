"""Attention over all patches of a slide, which come batch by batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.selector import SelectorNet


class OnlinePooling:
    """What a selector makes of all patches, without holding more than a batch of them.

    Per attention channel it keeps the largest logit so far, and relative to it the sums
    of the weights and of the weighted embeddings; a larger logit rescales both.

    Parameters
    ----------
    net : SelectorNet
        In eval mode; its weights must stay as they are.

    Notes
    -----
    Sums are kept in float64: in float32, a slide's patches would add their rounding
    thousands of times. Memory: C x (D + 2) float64, 33 KB for 8 channels of 512.

    References
    ----------
    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018,
    algorithm 3.
    """

    def __init__(self, net: SelectorNet) -> None:
        self.net = net
        width, channels = net.shape.width, net.channels
        where = net.attention.queries.device
        self._largest = torch.full((channels,), -torch.inf, device=where).double()
        self._weight = torch.zeros(channels, dtype=torch.float64, device=where)
        self._pooled = torch.zeros(channels, width, dtype=torch.float64, device=where)
        self._count = 0

    @torch.no_grad()
    def add(self, x: Tensor, places_um: Tensor | None = None) -> Tensor:
        """Pool a batch of patches with those before.

        Parameters
        ----------
        x : (b, D) tensor
            Embeddings on the net's device; b at least 1.
        places_um : (b, 2) tensor, optional
            See `SelectorNet.place`.

        Returns
        -------
        (b, C) tensor
            Attention logits, those of `SelectorNet.logits`.

        Raises
        ------
        ModelError
            If places are missing, not wanted, or not one per embedding.
        """
        logits = self.net.logits(x, places_um)
        largest = torch.maximum(self._largest, logits.double().amax(0))
        weights = (logits.double() - largest).exp()  # (b, C)
        kept = (self._largest - largest).exp()
        self._largest = largest
        self._weight = self._weight * kept + weights.sum(0)
        seen = self.net.place(x.double(), places_um)
        self._pooled = self._pooled * kept[:, None] + weights.T @ seen
        self._count += len(x)
        return logits

    def snapshot(self) -> Callable[[], bytes]:
        """What was pooled so far, for `restore`; fetched when it is called."""
        columns = self._largest[:, None], self._weight[:, None], self._pooled
        state = torch.cat(columns, dim=1)  # (C, 2 + D)
        return lambda: state.cpu().numpy().tobytes()

    def restore(self, state: bytes, count: int) -> None:
        """Go on behind the first `count` patches.

        Parameters
        ----------
        state : bytes
            What `snapshot` gave, for the same net.
        count : int
            Patches that were pooled.
        """
        columns = torch.frombuffer(bytearray(state), dtype=torch.float64)
        columns = columns.view(len(self._largest), -1).to(self._pooled.device)
        self._largest, self._weight = columns[:, 0], columns[:, 1]
        self._pooled = columns[:, 2:]
        self._count = count

    @torch.no_grad()
    def tokens(self) -> Tensor:
        """What attention makes of all patches so far, for `SelectorNet.answer`.

        Returns
        -------
        (1, T, D) tensor
            In the net's type.

        Raises
        ------
        ModelError
            If there was no patch, or what was pooled is not finite.
        """
        if not self._count:
            raise ModelError("no patch was pooled: there is nothing to predict from")
        pooled = self._pooled / self._weight[:, None]
        if not bool(pooled.isfinite().all()):
            raise ModelError(
                f"the attention over {self._count} patches is not finite; the "
                "selector's weights are damaged or do not fit"
            )
        return self.net.attention.finish(pooled[None].to(self.net.attention.queries))
