"""Encoders prepared for a device say the same, up to rounding."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.growth import tiny_selector
from wsi_pipeline.config import SelectOptions
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models import precision
from wsi_pipeline.models.carrying import CudaLane, HostLane
from wsi_pipeline.models.encoders import PatchInput, build_encoder
from wsi_pipeline.models.precision import prepare, resolve_precision
from wsi_pipeline.models.scoring import open_scorer

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def pixels(count: int = 3, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def encoder(name: str, resizer: str = "") -> nn.Module:
    """With batch statistics that are not those of fresh weights."""
    torch.manual_seed(1)
    made = build_encoder(name, 32, resizer, 48 if resizer else 0).eval()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.2, 0.2)
    return made


@torch.no_grad()
def error(name: str, kind: str, resizer: str = "") -> float:
    """Largest change of an embedding's numbers, whose deviation is about 1."""
    made = encoder(name, resizer)
    wanted = copy.deepcopy(made)(pixels())
    found = prepare(made, kind)(pixels())
    return float((found.float() - wanted).abs().max())


NAMES = ["small", "resnet18", "resnet18-frozen", "timm:resnet18"]


@pytest.mark.parametrize("name", NAMES)
def test_float32_changes_by_rounding(name: str) -> None:
    assert error(name, "float32") < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_changes_by_its_rounding(name: str) -> None:
    assert 1e-4 < error(name, "bfloat16") < 0.1


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_resizer_before_the_encoder_is_prepared_with_it(kind: str) -> None:
    assert error("small", kind, "area") < {"float32": 2e-5, "bfloat16": 0.2}[kind]


def count_of(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in module.modules())


def test_batch_norms_are_folded_into_convolutions() -> None:
    made = encoder("resnet18-frozen")
    assert count_of(made, nn.BatchNorm2d) == 20
    assert count_of(prepare(made, "float32"), nn.BatchNorm2d) == 0


class Winding(nn.Module):
    """Cannot be traced, but its part can."""

    def __init__(self) -> None:
        super().__init__()
        self.input = PatchInput()
        self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.lone = nn.BatchNorm2d(4)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.lone(self.part(self.input(patches)))
        while float(x.abs().max()) > 1:
            x = x / 2
        return x.mean((2, 3))


@torch.no_grad()
def test_what_cannot_be_traced_is_folded_in_parts() -> None:
    made = Winding().eval()
    for norm in (made.part[1], made.lone):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    wanted = made(pixels())
    found = prepare(made, "float32")
    assert count_of(found, nn.BatchNorm2d) == 1  # no convolution stands before it
    torch.testing.assert_close(found(pixels()), wanted, atol=1e-5, rtol=0)


def test_deep_encoders_are_laid_out_channels_last_and_the_small_one_is_not() -> None:
    layouts = []
    for name in ("resnet18", "small"):
        made = prepare(encoder(name), "float32")
        convolution = next(m for m in made.modules() if isinstance(m, nn.Conv2d))
        convolution.register_forward_hook(
            lambda _, inputs, __: layouts.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)
            )
        )
        made(pixels())
    assert layouts == [True, False]


def test_pixels_are_normalised_in_float32_whatever_the_net() -> None:
    given = PatchInput()
    exact = PatchInput().double()(pixels())
    rough = copy.deepcopy(given).bfloat16()(pixels())
    quick = precision._QuickInput(given, torch.bfloat16)(pixels())
    assert (rough.double() - exact).abs().max() > 0.02
    # one rounding to 8 bits of numbers below 4
    assert (quick.double() - exact).abs().max() <= 4 * 2**-9
    floats = pixels() / 255
    quick = precision._QuickInput(given, torch.float32)
    torch.testing.assert_close(quick(floats), quick(pixels()), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("amx", "wanted"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(
    amx: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    assert resolve_precision("auto", CPU) == wanted
    for asked in ("float32", "bfloat16"):
        assert resolve_precision(asked, CPU) == asked
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert resolve_precision("auto", CPU) == "float32"


def test_features_take_no_bfloat16() -> None:
    with pytest.raises(ConfigError, match="takes float32 only"):
        prepare(build_encoder("features:8", 32), "bfloat16")
    made = prepare(build_encoder("features:8", 32), "float32")
    assert made(torch.zeros(2, 8)).shape == (2, 32)


def test_on_the_host_a_batch_comes_back_at_once() -> None:
    lane: HostLane[str] = HostLane()
    sent = lane.send(pixels(2, 4).numpy())
    assert [(tag, rows.sum()) for tag, rows in lane.fetch("a", sent.float())] == [
        ("a", pixels(2, 4).float().sum())
    ]
    assert list(lane.drain()) == []


@GPU
def test_on_a_gpu_batches_come_back_in_order_and_whole() -> None:
    device = torch.device("cuda", 0)
    lane: CudaLane[int] = CudaLane(device)
    batches = [pixels(64, 224).numpy() // (n + 1) for n in range(9)]
    found = []
    for number, batch in enumerate(batches):
        sums = lane.send(batch).double().sum((1, 2, 3))
        found += list(lane.fetch(number, sums))
        assert len(found) == max(0, number - 1)
    found += list(lane.drain())
    assert [tag for tag, _ in found] == list(range(9))
    for batch, (_, sums) in zip(batches, found, strict=True):
        assert (sums == batch.sum((1, 2, 3), dtype="f8")).all()


def test_auto_leaves_an_encoder_in_float32_that_takes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    model = tiny_selector(tmp_path)
    with open_scorer(model, SelectOptions(device="cpu"), 4) as scorer:
        assert scorer.precision == "float32"
    asked = SelectOptions(device="cpu", precision="bfloat16")
    with (
        pytest.raises(ConfigError, match="takes float32 only"),
        open_scorer(model, asked, 4),
    ):
        pass
