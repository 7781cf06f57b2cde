"""A learned resizer before a selector's encoder: cards, weights, batches, memory."""

import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from torch import Tensor

from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import BudgetError, ConfigError, ModelError, UnknownNameError
from wsi_pipeline.models.budget import MARGIN, held_bytes
from wsi_pipeline.models.cards import SHIPPED, ModelFolder, find_model
from wsi_pipeline.models.encoders import ENCODERS, build_encoder
from wsi_pipeline.models.flops import count_flops
from wsi_pipeline.models.resizer import BASES, Resizer
from wsi_pipeline.models.scoring import load_selector, open_scorer
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import save_state


def _selector(base: str = "area", side_px: int = 24) -> SelectorNet:
    """A selector whose resizer has learned something, in eval mode."""
    torch.manual_seed(0)
    shape = SelectorShape("small", 16, 2, 8, 32, base, side_px)
    net = SelectorNet(shape, ("cancer",))
    torch.nn.init.normal_(net.encoder.resizer.last.weight, std=0.05)
    return net.eval()


def _patches(n: int, side: int = 48) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """The shipped model with another selector."""
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "synthetic", folder)
    net = _selector()
    card = orjson.loads((folder / "card.json").read_bytes())
    card["selector"] |= {
        "sha256": save_state(net, folder / "selector.safetensors"),
        "architecture": net.shape.to_json(),
        "tasks": list(net.tasks),
        "patch_px": 48,
    }
    (folder / "card.json").write_bytes(orjson.dumps(card))
    return find_model(folder)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("side_px", [24, 60])
def test_the_encoder_sees_what_the_resizer_makes(base: str, side_px: int) -> None:
    net, patches = _selector(base, side_px), _patches(3)
    pixels = patches.float() / 255
    with torch.no_grad():
        wanted = net.encoder.encoder(net.encoder.resizer(pixels, (side_px, side_px)))
        assert torch.equal(net.embed(patches), wanted)
        # floats in [0, 1] are the same patches, as for every encoder
        assert torch.equal(net.embed(pixels), wanted)
        plain = net.encoder.encoder(Resizer(base=base)(pixels, (side_px, side_px)))
    assert not torch.allclose(wanted, plain, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_patches_do_not_influence_each_other_through_a_resizer(
    training: bool,
) -> None:
    # while training too: no statistic of a batch, and none that is kept
    encoder = _selector().encoder.double().train(training)
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    patches = _patches(5)
    patches[1], patches[2] = 0, 255
    with torch.no_grad():
        together = encoder(patches)
        alone = torch.cat([encoder(patches[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert all(torch.equal(state[n], v) for n, v in encoder.state_dict().items())


@pytest.mark.parametrize("name", ENCODERS.names())
def test_every_encoder_takes_a_resizer_that_keeps_patches_apart(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, 8, "bicubic", 32).eval().double()
    patches = _patches(3)
    with torch.no_grad():
        together = encoder(patches)
        alone = encoder(patches[1:2])
    torch.testing.assert_close(alone, together[1:2], rtol=0, atol=1e-12)
    assert together.shape == (3, 8)


def test_weights_and_architecture_survive_the_model_folder(model: ModelFolder) -> None:
    net, patches = _selector(), _patches(2)
    again = load_selector(model)
    assert (again.shape.resizer, again.shape.resized_px) == ("area", 24)
    with torch.no_grad():
        assert torch.equal(again.embed(patches), net.embed(patches))


def test_the_scorer_gives_what_the_net_gives_whatever_the_batch(
    model: ModelFolder,
) -> None:
    patches = _patches(7)
    net = _selector()
    with torch.no_grad():
        wanted = net.embed(patches).numpy()
    for count in (2, 7):  # batches of 2 and of 8, the last one filled up
        options = SelectOptions(device="cpu", precision="float32")
        with open_scorer(model, options, count) as scorer:
            found = scorer.embed(patches.numpy())
        assert scorer.plan.batch == {2: 2, 7: 8}[count]
        # float32 kernels differ with the batch
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_the_plan_counts_the_resizer_fits_and_refuses(model: ModelFolder) -> None:
    room = {"device": "cpu", "precision": "float32", "queue": 1 << 20}
    budget = 90 << 20
    with open_scorer(model, SelectOptions(**room, memory=budget), 64) as scorer:
        plan, held = scorer.plan, held_bytes(scorer.net)
    assert 1 < plan.batch < 64
    assert plan.counted_bytes <= budget * MARGIN
    # at least the patches as floats, and twice the resizer's 16 features of them
    least = plan.batch * (3 + 2 * 16) * 4 * 48 * 48
    assert plan.measured_bytes > held + least
    refused = SelectOptions(**room, memory=4 << 20)
    with (
        pytest.raises(BudgetError, match="selector needs at least") as error,
        open_scorer(model, refused, 64),
    ):
        pass
    needed = int(str(error.value).split("at least ")[1].split(" MiB")[0])
    enough = SelectOptions(**room, memory=needed << 20)
    with open_scorer(model, enough, 64) as scorer:
        assert scorer.plan.batch >= 1
        assert scorer.embed(_patches(3).numpy()).shape == (3, 16)


def test_flops_before_the_small_encoder() -> None:
    patch = torch.rand(1, 3, 128, 128)
    encoders = build_encoder("small", 128), build_encoder("small", 128, "area", 64)
    whole, resized = (count_flops(encoder, patch) / 1e6 for encoder in encoders)
    small = count_flops(encoders[0], patch[..., :64, :64]) / 1e6
    # the numbers in the docstring
    assert [round(n) for n in (resized, whole, small)] == [183, 85, 21]
    before, after = 128 * 128 * 2608, 64 * 64 * 9264
    assert math.isclose(resized - small, 2 * (before + after) / 1e6)


def test_cards_from_before_the_resizer_are_read_as_without_one() -> None:
    old = SelectorShape().to_json()
    del old["resizer"], old["resized_px"]
    assert SelectorShape.from_json(old) == SelectorShape()
    shape = SelectorShape(resizer="bicubic", resized_px=96)
    assert SelectorShape.from_json(shape.to_json()) == shape


@pytest.mark.parametrize(
    "change",
    [
        {"resizer": "sinc", "resized_px": 64},
        {"resizer": False},
        {"resizer": "area"},
        {"resized_px": 64},
        {"resizer": "area", "resized_px": -1},
    ],
)
def test_a_selectors_card_with_half_a_resizer_is_refused(
    change: dict[str, object],
) -> None:
    with pytest.raises(ModelError, match="selector architecture"):
        SelectorShape.from_json(SelectorShape().to_json() | change)


def test_a_base_and_its_side_go_together() -> None:
    for resizer, side_px in (("area", 0), ("", 64), ("area", -1)):
        with pytest.raises(ConfigError, match="--resizer, --resized-px"):
            SelectorShape(resizer=resizer, resized_px=side_px)
    with pytest.raises(UnknownNameError, match="'sinc'; there are: bilinear"):
        replace(SelectorShape(), resizer="sinc", resized_px=64)


# on the command line


def wsi(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsi_pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
        timeout=300,
    )


@pytest.mark.parametrize(
    ("part", "options"),
    [("select", ["--resizer", "--resized-px"]), ("segment", ["--resizer"])],
)
def test_help_shows_the_resizers_options(part: str, options: list[str]) -> None:
    text = wsi("train", part, "--help").stdout
    assert all(option in text for option in options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("select", "--resizer", "sinc", "--resized-px", 64), "bilinear, bicubic, "),
        (("segment", "--resizer", "sinc"), "bilinear, bicubic, area, antialias"),
        (("select", "--resizer", "area"), "--resizer, --resized-px"),
        (("select", "--resized-px", 64), "--resizer, --resized-px"),
    ],
)
def test_a_wrong_resizer_is_refused_in_one_line_before_any_work(
    tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    verb, *options = arguments
    out = tmp_path / "model"
    # no such folder of data: what is read first would complain first
    missing = tmp_path / "none"
    result = wsi("train", verb, "glas", "-o", out, "--data", missing, *options)
    assert result.returncode == 2
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert words in line
    assert not out.exists()
