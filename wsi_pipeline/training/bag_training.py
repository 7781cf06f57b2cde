"""A training step on bags: selection without gradient, then the loss of the chosen.

References
----------
Bergner et al., ICLR 2023, section 3: the gradient reaches the M selected patches only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.choosing import choose_patches
from wsi_pipeline.models.encoders import reads_features
from wsi_pipeline.models.selector import SelectorNet

# what a selection pass encodes at a time
_PATCHES = {"cpu": 64, "cuda": 512}
_FEATURES = 4096

Ids = NDArray[np.int64]


class PatchBag(Protocol):
    """The patches of one slide or image, read when they are needed, and its labels.

    A `PatchSource` with labels. Patches are (k, 3, p, p) uint8 pixels or (k, F) float32
    features; their ids count from 0 to n - 1.
    """

    @property
    def labels(self) -> NDArray[np.float32]:
        """(T,): 1, 0 or UNKNOWN per task."""
        ...

    @property
    def places_um(self) -> NDArray[np.float64] | None:
        """(n, 2) top-left corners, um from the slide's; None where nobody knows."""
        ...

    @property
    def order(self) -> Ids:
        """(n,) ids of all patches, in the order in which they are read fastest."""
        ...

    def __len__(self) -> int: ...

    def batches(self, ids: Ids, size: int) -> Iterator[tuple[Ids, NDArray[Any]]]:
        """Patches in the order of `ids`, `size` at a time, the last time fewer."""
        ...


@dataclass(frozen=True)
class Step:
    """How a step chooses patches.

    Parameters
    ----------
    keep : int
        M.
    colour : float
        Strength of the colour augmentation, see `View.draw`; features know none.
    share : float
        Share of a bag's patches that are looked at, drawn anew in every step.
    half : bool
        Whether the selection pass encodes in bfloat16; logits are float32 anyway.
    """

    keep: int
    colour: float = 0.0
    share: float = 1.0
    half: bool = False


Draw = Callable[[int], tuple[Sequence[PatchBag], Step, np.random.Generator]]
"""Number of a step to its bags, how it chooses, and what else it draws from."""


def bag_losses(net: SelectorNet, draw: Draw) -> Callable[[nn.Module, int], Tensor]:
    """What `fit` wants: (module, step) to the loss of the step's bags."""

    def loss_of(module: nn.Module, step: int) -> Tensor:
        return bag_loss(module, net, *draw(step))

    return loss_of


def bag_loss(
    module: nn.Module,
    net: SelectorNet,
    bags: Sequence[PatchBag],
    step: Step,
    rng: np.random.Generator,
) -> Tensor:
    """Select M patches per bag without gradient, then the loss of the bags' labels.

    Parameters
    ----------
    module : nn.Module
        What is trained: `net`, or `net` wrapped for a device and precision.
    net : SelectorNet
        The same net, unwrapped.
    bags : sequence of PatchBag
        At least one label among them is known.

    Returns
    -------
    Tensor
        Mean cross-entropy of the labels that are known.

    Notes
    -----
    Memory: a chunk of patches in the selection pass, then the M patches of all bags
    with their gradients. Of the other patches only logits are kept.
    """
    device = next(net.parameters()).device
    picked, places = [], []
    for bag in bags:
        view = View.draw(step.colour, rng)
        ids = select_bag(net, bag, step, view, rng)
        _, patches = next(bag.batches(ids, len(ids)))
        picked.append(view(torch.from_numpy(patches).to(device)))
        where = places_of(net, bag, ids)
        if where is not None:
            places.append(where)
    most = max(len(x) for x in picked)
    real = torch.zeros(len(bags), most, dtype=torch.bool, device=device)
    for row, x in enumerate(picked):
        real[row, : len(x)] = True
    given = [_padded(picked, most), real]
    if places:
        given.append(_padded(places, most))
    labels = torch.from_numpy(np.stack([bag.labels for bag in bags])).to(device)
    known = ~labels.isnan()
    return nn.functional.binary_cross_entropy_with_logits(
        module(*given)[known], labels[known]
    )


def select_bag(
    net: SelectorNet,
    bag: PatchBag,
    step: Step,
    view: "View",
    rng: np.random.Generator,
) -> Ids:
    """Ids of the patches to learn from, (min(M, n),) int64, ascending.

    Notes
    -----
    With a share of 1 these are the top M of all patches. Then a slide's choice hardly
    changes from round to round, and what happens to be chosen is learned by heart; of
    a part that is drawn anew, others come to be chosen as well.
    """
    seen = bag.order
    if step.share < 1:
        looked = np.zeros(len(bag), np.bool_)
        looked[rng.permutation(len(bag))[: max(1, round(step.share * len(bag)))]] = True
        seen = seen[looked[seen]]
    if len(seen) > step.keep:
        ids, logits = _score(net, bag, seen, view, half=step.half)
        seen = ids[choose_patches(logits, step.keep).chosen]
    return np.sort(seen)


def _score(
    net: SelectorNet, bag: PatchBag, seen: Ids, view: "View", *, half: bool
) -> tuple[Ids, NDArray[np.float32]]:
    """Ids in ascending order and their attention logits, (k, C)."""
    logits = np.empty((len(bag), net.channels), np.float32)
    with selection_pass(net):
        for ids, x in embed_patches(net, bag, seen, view, half=half):
            logits[ids] = net.logits(x, places_of(net, bag, ids)).cpu().numpy()
    ascending = np.sort(seen)
    return ascending, logits[ascending]


def embed_patches(
    net: SelectorNet,
    bag: PatchBag,
    ids: Ids,
    view: "View | None" = None,
    *,
    half: bool = False,
) -> Iterator[tuple[Ids, Tensor]]:
    """Ids and float32 embeddings, (k, D), chunk by chunk; in a `selection_pass`."""
    device = next(net.parameters()).device
    features = reads_features(net.shape.encoder)
    size = _FEATURES if features else _PATCHES[device.type]
    for part, patches in bag.batches(ids, size):
        seen = torch.from_numpy(patches).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            x = net.embed(seen if view is None else view(seen))
        yield part, x.float()


def places_of(net: SelectorNet, bag: PatchBag, ids: Ids) -> Tensor | None:
    """Where some patches lie, (k, 2) um, for a selector that wants to know.

    Raises
    ------
    ModelError
        If it wants to and the bag does not say.
    """
    if not net.shape.position:
        return None
    if bag.places_um is None:
        raise ModelError(
            "the selector looks at places, and nobody knows where these patches lie; "
            "leave --position out"
        )
    return torch.from_numpy(bag.places_um[ids]).to(next(net.parameters()).device)


@contextmanager
def selection_pass(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; every module's mode is restored, errors or not."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass(frozen=True)
class View:
    """How the patches of a bag are turned and tinted: all of them alike.

    Parameters
    ----------
    flip : bool
        Left to right, first.
    turns : int
        Quarter turns, then.
    matrix, shift : (3, 3) and (3, 1, 1) float32 tensors
        The new colour of a pixel is ``matrix @ colour + shift``.
    """

    flip: bool
    turns: int
    matrix: Tensor
    shift: Tensor

    @classmethod
    def draw(cls, colour: float, rng: np.random.Generator) -> "View":
        """Draw one.

        Parameters
        ----------
        colour : float
            Deviation of the entries of the colour matrix and of twice the shift.
        """
        flip, turns = rng.random() < 0.5, int(rng.integers(4))
        matrix = np.eye(3) + rng.normal(0, colour, (3, 3)) * (0.5 + 0.5 * np.eye(3))
        shift = rng.normal(0, colour / 2, (3, 1, 1))
        return cls(bool(flip), turns, _floats(matrix), _floats(shift))

    def __call__(self, patches: Tensor) -> Tensor:
        """(n, 3, p, p) uint8 to float32 in [0, 1]; (n, F) features stay as they are."""
        if patches.ndim == 2:
            return patches
        pixels = patches.float() / 255
        if self.flip:
            pixels = pixels.flip(3)
        pixels = pixels.rot90(self.turns, (2, 3))
        matrix, shift = self.matrix.to(pixels), self.shift.to(pixels)
        mixed = torch.einsum("ij,njyx->niyx", matrix, pixels)
        return (mixed + shift).clamp(0, 1)


def augment(patches: Tensor, colour: float, rng: np.random.Generator) -> Tensor:
    """Flip, turn and tint patches alike: (n, 3, p, p) uint8 to float32 in [0, 1]."""
    return View.draw(colour, rng)(patches)


def _floats(values: NDArray[np.float64]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _padded(parts: Sequence[Tensor], most: int) -> Tensor:
    """Rows of each part, zeros below them: (b, most, ...)."""
    batch = parts[0].new_zeros(len(parts), most, *parts[0].shape[1:])
    for row, part in enumerate(parts):
        batch[row, : len(part)] = part
    return batch
