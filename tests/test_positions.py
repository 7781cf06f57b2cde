"""Where a patch lies: its encoding, and where the selector adds it."""

import pytest
import torch
from torch import Tensor

from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.models.cards import shipped_models
from wsi_pipeline.models.positions import encode_positions
from wsi_pipeline.models.selector import SelectorNet, SelectorShape


def net_of(*, position: bool) -> SelectorNet:
    torch.manual_seed(3)
    shape = SelectorShape(width=32, heads=4, key_width=8, position=position)
    return SelectorNet(shape, ("cancer", "gland")).double().eval()


def places_of(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, 2, dtype=torch.float64, generator=generator) * 50_000


# the encoding


def test_half_the_width_is_x_half_y_from_100_um_to_100_mm() -> None:
    # 12: wavelengths of 100, 3162 and 100,000 um; x a quarter of the first and y a
    # quarter of the last
    x, y = encode_positions(torch.tensor([[25.0, 25_000.0]]), 12).view(2, 2, 3)
    wavelengths = torch.tensor([1.0, 1000**0.5, 1000.0], dtype=torch.float64) * 100
    turn = 2 * torch.pi / wavelengths
    torch.testing.assert_close(x, torch.stack([(25 * turn).sin(), (25 * turn).cos()]))
    torch.testing.assert_close(y[0], (25_000 * turn).sin())
    assert x[0, 0] == pytest.approx(1)
    assert y[0, 2] == pytest.approx(1)
    assert y[1, 2] == pytest.approx(0, abs=1e-9)


def test_the_corner_of_the_slide_is_sines_of_0_and_cosines_of_1() -> None:
    encoded = encode_positions(torch.zeros(1, 2), 8)
    assert encoded.tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


def test_each_place_is_encoded_by_itself() -> None:
    places = places_of(6).view(2, 3, 2)
    together = encode_positions(places, 16)
    assert together.shape == (2, 3, 16)
    assert torch.equal(together[1, 2], encode_positions(places[1, 2], 16))


def test_how_alike_two_places_are_depends_on_the_shift_between_them_only() -> None:
    places = places_of(9)
    here, there = (
        encode_positions(part, 32) for part in (places, places + torch.tensor([777, 5]))
    )
    torch.testing.assert_close(here @ here.T, there @ there.T)


def test_a_micrometre_is_seen_at_the_far_end_of_the_slide() -> None:
    near = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    a, b = encode_positions(near, 32)
    c, d = encode_positions(near + 100_000, 32)
    torch.testing.assert_close(a @ b, c @ d, rtol=0, atol=1e-9)


@pytest.mark.parametrize("width", [2, 30])
def test_a_width_that_four_does_not_divide_is_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=f"multiple of 4, got {width}"):
        encode_positions(torch.zeros(1, 2), width)
    with pytest.raises(ConfigError, match=f"multiple of 4, got {width}"):
        SelectorShape(width=width, position=True)
    card = SelectorShape(width=width).to_json() | {"position": True}
    with pytest.raises(ModelError, match=f"multiple of 4, got {width}"):
        SelectorShape.from_json(card)


# in the selector


def test_the_place_follows_its_patch_through_any_order() -> None:
    net = net_of(position=True)
    x, places = torch.randn(20, 32, dtype=torch.float64), places_of(20)
    order = torch.randperm(20)
    with torch.no_grad():
        logits = net.logits(x, places)
        again = net.logits(x[order], places[order])
        torch.testing.assert_close(again, logits[order], rtol=0, atol=1e-12)
        assert not torch.allclose(net.logits(x[order], places), logits[order])
        prediction = net.predict(x[None], places_um=places[None])
        again = net.predict(x[order][None], places_um=places[order][None])
        torch.testing.assert_close(again, prediction, rtol=0, atol=1e-12)
        swapped = net.predict(x[order][None], places_um=places[None])
        assert not torch.allclose(swapped, prediction)


def test_places_are_added_to_score_and_to_aggregate_and_not_kept() -> None:
    net = net_of(position=True)
    patches = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    places, real = places_of(5), torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        x = net.embed(patches)
        seen = x + encode_positions(places, 32)
        torch.testing.assert_close(net.logits(x, places), seen @ net.attention.scorer())
        wanted = net.answer(net.attention(seen[None]))
        prediction = net.predict(x[None], places_um=places[None])
        torch.testing.assert_close(prediction, wanted)
        torch.testing.assert_close(
            net(patches[None].flatten(0, 1)[None], real, places[None]), wanted
        )
        assert torch.equal(x, net.embed(patches))
        assert torch.equal(x, net_of(position=False).embed(patches))


def test_equal_patches_differ_by_where_they_lie() -> None:
    net = net_of(position=True)
    x = torch.randn(1, 32, dtype=torch.float64).expand(3, 32)
    places = torch.tensor([[0.0, 0.0], [9000.0, 40.0], [0.0, 0.0]])
    logits = net.logits(x, places)
    assert torch.equal(logits[0], logits[2])
    assert not torch.allclose(logits[0], logits[1])


def test_half_precision_embeddings_are_placed_in_float32() -> None:
    net = net_of(position=True)
    x, places = torch.randn(3, 32).bfloat16(), places_of(3)
    assert torch.equal(net.logits(x, places), net.logits(x.float(), places))


@pytest.mark.parametrize(
    ("position", "places", "message"),
    [
        (True, None, r"got none, this selector wants \(4, 2\)"),
        (True, torch.zeros(1, 2), r"got \(1, 2\), this selector wants \(4, 2\)"),
        (False, torch.zeros(4, 2), r"got \(4, 2\), this selector wants none"),
    ],
)
def test_places_that_are_missing_or_not_wanted_are_refused(
    position: bool, places: Tensor | None, message: str
) -> None:
    net = net_of(position=position)
    x = torch.randn(4, 32, dtype=torch.float64)
    with pytest.raises(ModelError, match=message):
        net.logits(x, places)
    bag = None if places is None else places[None]
    with pytest.raises(ModelError, match="this selector wants"):
        net.predict(x[None], places_um=bag)


def test_a_card_says_whether_places_count_and_older_ones_that_they_do_not() -> None:
    shape = SelectorShape(width=32, position=True)
    assert SelectorShape.from_json(shape.to_json()) == shape
    for card in shipped_models().values():
        assert "position" not in card.selector.architecture
        assert not SelectorShape.from_json(card.selector.architecture).position
    with pytest.raises(ModelError, match="position = 1 does not fit"):
        SelectorShape.from_json(shape.to_json() | {"position": 1})
