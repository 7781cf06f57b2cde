"""A training step: what selection leaves alone, where the gradient goes, the labels."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.choosing import choose_patches
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.training import bag_training
from wsi_pipeline.training.bag_training import (
    Step,
    View,
    augment,
    bag_loss,
    embed_patches,
    select_bag,
    selection_pass,
)
from wsi_pipeline.training.bags import Bag

Draws = np.random.Generator


def net_of(
    encoder: str = "small",
    resizer: str = "",
    tasks: tuple[str, ...] = ("cancer",),
    *,
    position: bool = False,
) -> SelectorNet:
    torch.manual_seed(0)
    side_px = 16 if resizer else 0
    shape = SelectorShape(encoder, 16, 2, 8, 32, resizer, side_px, position)
    return SelectorNet(shape, tasks)


def rng(seed: int = 3) -> Draws:
    return np.random.default_rng(seed)


def bag_of(n: int, labels: tuple[float, ...] = (1.0,), seed: int = 1) -> Bag:
    patches = rng(seed).integers(0, 256, (n, 3, 32, 32)).astype(np.uint8)
    return Bag(patches, np.array(labels, np.float32), np.zeros(n, bool))


class Features:
    """A bag of features that are given to the net as they are, with a gradient."""

    def __init__(self, values: torch.Tensor, labels: tuple[float, ...] = (1.0,)):
        self.values = values
        self.labels = np.array(labels, np.float32)
        self.places_um: NDArray[np.float64] | None = None
        self.order = np.arange(len(values))[::-1].copy()
        self.sizes: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def batches(
        self, ids: NDArray[np.int64], size: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            self.sizes.append(len(part))
            yield part, self.values.numpy()[part]


def features_of(n: int, width: int = 6, **more: object) -> Features:
    made = torch.randn(n, width, generator=torch.Generator().manual_seed(2))
    return Features(made, **more)


PLAIN = View(False, 0, torch.eye(3), torch.zeros(3, 1, 1))


def score_of(net: SelectorNet, bag: Features) -> NDArray[np.float32]:
    return bag_training._score(net, bag, bag.order, PLAIN, half=False)[1]


# the selection pass


@pytest.mark.parametrize(
    ("encoder", "resizer"),
    [
        ("small", "bilinear"),
        ("resnet18", ""),
        ("resnet18-frozen", ""),
        ("resnet18-frozen", "bilinear"),
        ("timm-frozen:resnet18", ""),
    ],
)
def test_selection_leaves_statistics_modes_and_random_state_as_they_were(
    encoder: str, resizer: str
) -> None:
    if encoder.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed (extra bodies)")
    net = net_of(encoder, resizer).train()
    net.attention.norm1.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    ids = select_bag(net, bag_of(9), Step(4), PLAIN, rng())
    assert ids.shape == (4,)
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert all(torch.equal(state[n], v) for n, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("encoder", ["resnet18-frozen", "resnet18"])
def test_a_step_does_not_move_batch_statistics(encoder: str) -> None:
    net = net_of(encoder).train()
    state = {n: v.clone() for n, v in net.state_dict().items() if "running" in n}
    assert bool(state) == (encoder == "resnet18-frozen")
    bag_loss(net, net, [bag_of(9)], Step(4, 0.05), rng()).backward()
    assert all(torch.equal(net.state_dict()[n], v) for n, v in state.items())
    # but the norms' own scales learn
    norms = [p for n, p in net.encoder.body.named_parameters() if "bn1.weight" in n]
    assert norms
    assert all(bool(p.grad.abs().sum() > 0) for p in norms)


def test_modes_come_back_after_an_error() -> None:
    net = net_of().train()
    net.attention.eval()
    with pytest.raises(ValueError, match="stop"), selection_pass(net):
        assert not net.training
        assert not torch.is_grad_enabled()
        raise ValueError("stop")
    assert net.training
    assert net.encoder.training
    assert not net.attention.training
    assert torch.is_grad_enabled()


def test_modes_come_back_when_a_bag_cannot_be_read() -> None:
    class Broken(Features):
        def batches(self, ids, size):
            yield next(super().batches(ids, 2))
            raise OSError("gone")

    net = net_of("features:6").train()
    broken = Broken(torch.zeros(9, 6))
    with pytest.raises(OSError, match="gone"):
        select_bag(net, broken, Step(4), PLAIN, rng())
    assert all(module.training for module in net.modules())
    assert torch.is_grad_enabled()


def test_selection_makes_no_graph_and_holds_a_chunk_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bag_training, "_FEATURES", 7)
    net, bag = net_of("features:6").train(), features_of(40)
    made = []
    net.encoder.register_forward_hook(lambda _, args, out: made.append((args, out)))
    logits = score_of(net, bag)
    assert bag.sizes == [7] * 5 + [5]
    assert [len(out) for _, out in made] == bag.sizes
    assert not any(out.requires_grad for _, out in made)
    with torch.no_grad():
        wanted = net.eval().logits(net.embed(bag.values)).numpy()
    # read backwards, and each logit at its own place
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-6)


def test_a_bag_of_no_more_than_m_patches_is_taken_whole_and_unread() -> None:
    bag = features_of(4)
    ids = select_bag(net_of("features:6"), bag, Step(4), PLAIN, rng())
    assert ids.tolist() == [0, 1, 2, 3]
    assert not bag.sizes


def test_the_best_patches_are_chosen_in_ascending_order() -> None:
    net, bag = net_of("features:6"), features_of(30)
    ids = select_bag(net, bag, Step(5), PLAIN, rng())
    rank = choose_patches(score_of(net, bag), 5).rank
    assert ids.tolist() == sorted(np.argsort(rank)[:5].tolist())


def test_a_share_of_the_patches_is_looked_at_and_its_best_are_chosen() -> None:
    net, bag = net_of("features:6"), features_of(40)
    score = choose_patches(score_of(net, bag), 5).score
    seen, looked = set(), []
    net.encoder.register_forward_hook(lambda _, args, __: looked.append(args[0]))
    for seed in range(30):
        ids = select_bag(net, bag, Step(5, share=0.3), PLAIN, rng(seed))
        among = [np.flatnonzero((bag.values == x).all(1))[0] for x in looked.pop()]
        assert len(among) == 12
        assert ids.tolist() == sorted(sorted(among, key=lambda n: -score[n])[:5])
        seen |= set(among)
    assert seen == set(range(40))
    # of 8 patches M may be all
    assert len(select_bag(net, bag, Step(12, share=0.2), PLAIN, rng())) == 8
    assert not looked


def test_a_share_of_one_draws_nothing() -> None:
    draws, again = rng(), rng()
    select_bag(net_of("features:6"), features_of(9), Step(5), PLAIN, draws)
    assert draws.integers(1 << 40) == again.integers(1 << 40)


def test_half_precision_encodes_in_bfloat16_and_scores_in_float32() -> None:
    net, bag = net_of("features:6"), features_of(30)
    types = []
    net.encoder.net[1].register_forward_hook(lambda _, __, out: types.append(out.dtype))
    with selection_pass(net):
        for half in (False, True):
            for _, x in embed_patches(net, bag, bag.order, half=half):
                assert x.dtype == torch.float32
                assert net.logits(x).dtype == torch.float32
    assert types == [torch.float32, torch.bfloat16]


# the gradient


@pytest.mark.parametrize(
    ("encoder", "resizer"), [("small", ""), ("small", "bilinear"), ("resnet18", "")]
)
def test_gradient_reaches_the_selected_patches_only(
    encoder: str, resizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, bag = net_of(encoder, resizer).train(), bag_of(12)
    seen: list[torch.Tensor] = []
    real = View.__call__

    def watched(self: View, patches: torch.Tensor) -> torch.Tensor:
        pixels = real(self, patches).requires_grad_()
        seen.append(pixels)
        return pixels

    monkeypatch.setattr(View, "__call__", watched)
    ids = select_bag(net, bag, Step(5), PLAIN, rng())
    seen.clear()
    bag_loss(net, net, [bag], Step(5), rng()).backward()
    every, chosen = seen
    assert every.grad is None  # not even a graph from those that were only scored
    assert chosen.shape == (5, 3, 32, 32)
    assert bool((chosen.grad.abs().sum((1, 2, 3)) > 0).all())
    # the pass chose on the view's own patches, of which these are a part
    whole = {tuple(p.flatten().tolist()) for p in every.detach()}
    assert {tuple(p.flatten().tolist()) for p in chosen.detach()} < whole
    assert len(ids) == 5


def test_with_all_patches_kept_a_step_is_plain_attention_training() -> None:
    net, bag = net_of().eval(), bag_of(6)
    loss = bag_loss(net, net, [bag], Step(6, 0.05), rng())
    pixels = augment(torch.from_numpy(bag.patches), 0.05, rng())
    logit = net.predict(net.embed(pixels)[None])
    expected = torch.nn.functional.softplus(-logit)[0, 0]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("keep", [6, 5000])
def test_gradients_with_all_kept_are_those_of_plain_attention(keep: int) -> None:
    grads = []
    for plain in (False, True):
        net, bag = net_of("features:6").double().eval(), features_of(6)
        bag.values = bag.values.double()
        if plain:
            logit = net.predict(net.embed(bag.values)[None])[0, 0]
            torch.nn.functional.softplus(-logit).backward()
        else:
            bag_loss(net, net, [bag], Step(keep), rng()).backward()
        grads.append([p.grad for p in net.parameters()])
    for found, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("resizer", ["", "area"])
def test_short_bags_are_padded_without_changing_the_loss(resizer: str) -> None:
    net = net_of(resizer=resizer).eval()
    net.encoder.train()  # what pads a bag must not enter the resizer's statistics
    short, long = bag_of(3), bag_of(11)
    both = bag_loss(
        net,
        net,
        [short, long],
        Step(11),
        rng(),
    )
    draws = rng()
    alone = [bag_loss(net, net, [one], Step(11), draws) for one in (short, long)]
    torch.testing.assert_close(both, torch.stack(alone).mean())


def test_no_more_is_padded_than_the_largest_bag_needs() -> None:
    net = net_of("features:6")
    shapes = []
    net.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    bag_loss(net, net, [features_of(3), features_of(5)], Step(5000), rng())
    assert shapes == [(2, 5, 6)]


# labels and places


def test_unknown_labels_enter_no_loss() -> None:
    net = net_of(tasks=("malignant", "gland"))
    bag = bag_of(3, (np.nan, 1.0))
    bag_loss(net, net, [bag], Step(3), rng()).backward()
    assert net.outputs[0].weight.grad.abs().sum() == 0
    assert net.outputs[1].weight.grad.abs().sum() > 0


def test_every_known_label_of_several_tasks_counts_alike() -> None:
    net = net_of("features:6", tasks=("a", "b", "c")).eval()
    bags = [
        features_of(4, labels=(1.0, np.nan, 0.0)),
        features_of(4, labels=(0.0, np.nan, np.nan)),
    ]
    loss = bag_loss(net, net, bags, Step(4), rng())
    logits = net.predict(net.embed(bags[0].values)[None])[0]
    soft = torch.nn.functional.softplus
    wanted = (soft(-logits[0]) + soft(logits[2]) + soft(logits[0])) / 3
    torch.testing.assert_close(loss, wanted)


def test_places_go_with_their_patches() -> None:
    net = net_of("features:6", position=True).eval()
    bag = features_of(9)
    bag.places_um = rng().uniform(0, 20_000, (9, 2))
    step = Step(4)
    ids = select_bag(net, bag, step, PLAIN, rng())
    with torch.no_grad():
        x, places = net.embed(bag.values), torch.from_numpy(bag.places_um)
        logits = net.logits(x, places).numpy()
        assert ids.tolist() == np.flatnonzero(choose_patches(logits, 4).chosen).tolist()
        logit = net.predict(x[ids][None], None, places[ids][None])[0, 0]
        loss = bag_loss(net, net, [bag], step, rng())
    torch.testing.assert_close(loss, torch.nn.functional.softplus(-logit))


def test_a_selector_that_wants_places_says_so() -> None:
    net = net_of("features:6", position=True)
    with pytest.raises(ModelError, match="--position"):
        bag_loss(net, net, [features_of(9)], Step(4), rng())


# views


def test_augmentation_without_colour_only_turns_and_flips() -> None:
    patches = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    pixels = augment(patches, 0.0, rng(4))
    assert pixels.dtype == torch.float32
    assert sorted(pixels.mul(255).round().int().flatten().tolist()) == sorted(
        patches.int().flatten().tolist()
    )


def test_a_view_is_the_same_for_every_part_of_a_bag() -> None:
    patches = torch.randint(0, 256, (7, 3, 16, 16), dtype=torch.uint8)
    view = View.draw(0.1, rng())
    parts = torch.cat([view(patches[:3]), view(patches[3:])])
    torch.testing.assert_close(parts, view(patches), rtol=0, atol=1e-6)
    other = View.draw(0.1, rng(4))(patches)
    assert not torch.allclose(other, view(patches), atol=1e-2)


def test_features_have_no_view() -> None:
    features = torch.randn(5, 6)
    assert View.draw(0.5, rng())(features) is features
