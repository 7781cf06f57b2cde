"""Bodies: the table, any size in and out, pretrained weights, other packages, FLOPs."""

import json
import logging
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm.models._hub
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.bodies import BODIES, body_options, build_body
from wsi_pipeline.models.bodies.hrnet import WIDTHS
from wsi_pipeline.models.bodies.padding import PaddedBody
from wsi_pipeline.models.bodies.pretrained import load_pretrained
from wsi_pipeline.models.flops import count_flops
from wsi_pipeline.models.weights import load_state, save_state

FOREIGN = Path(__file__).parent / "foreign_body"

# small options for each row
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"widths": [4, 8, 12]},
    "smp-unet": {"channels": [32, 16, 16, 8, 8]},
    "pspnet": {"channels": 32},
    "deeplabv3plus": {"channels": 32},
    "fpn": {"channels": 64, "pyramid_channels": 32},
    "segformer": {"channels": 32},
    "hrnet-w48": {"width": "w18-small"},
}


@pytest.fixture(scope="module")
def small() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        name: build_body(name, classes=5, options=options).eval()
        for name, options in SMALL.items()
    }


def test_the_rows_are_these() -> None:
    assert BODIES.names() == tuple(SMALL)


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=4)
@given(h=st.integers(16, 70), w=st.integers(16, 70))
def test_any_size_comes_out_as_it_went_in(
    small: dict[str, nn.Module], name: str, h: int, w: int
) -> None:
    with torch.inference_mode():
        logits = small[name](torch.rand(1, 3, h, w))
    assert logits.shape == (1, 5, h, w)
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("side", [16, 17])
def test_the_least_sides_work_in_training_and_every_weight_learns(
    name: str, side: int
) -> None:
    torch.manual_seed(0)
    body = build_body(name, inputs=4, classes=2, options=SMALL[name])
    assert body.training
    body(torch.rand(2, 4, side, side)).square().mean().backward()
    idle = [name for name, p in body.named_parameters() if p.grad is None]
    assert idle == []


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_autocast_runs_on_the_cpu(
    small: dict[str, nn.Module], name: str
) -> None:
    image = torch.rand(1, 3, 20, 33)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = small[name](image)
    assert logits.shape == (1, 5, 20, 33)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_back_by_the_names_in_a_file(
    small: dict[str, nn.Module], name: str, tmp_path: Path
) -> None:
    file = tmp_path / "body.safetensors"
    save_state(small[name], file)
    again = build_body(name, classes=5, options=SMALL[name]).eval()
    image = torch.rand(1, 3, 24, 24)
    with torch.inference_mode():
        assert not torch.equal(again(image), small[name](image))
        load_state(again, file)
        assert torch.equal(again(image), small[name](image))


def test_the_default_is_small_and_needs_no_padding() -> None:
    body = build_body("unet", classes=3)
    # 3-32-64-128 and back, as the U-Net of the segmenter
    assert sum(p.numel() for p in body.parameters()) == 472_259
    assert "head.weight" in body.state_dict()


# --- padding


class _Multiples(nn.Module):
    """Its input, if the sides are multiples."""

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[-2] % 32 == image.shape[-1] % 32 == 0
        self.seen = image
        return image


@given(h=st.integers(1, 100), w=st.integers(1, 100))
def test_cropping_undoes_padding(h: int, w: int) -> None:
    image = torch.rand(2, 3, h, w)
    assert torch.equal(PaddedBody(_Multiples(), 32, ())(image), image)


def test_borders_are_mirrored_and_multiples_left_alone() -> None:
    net = _Multiples()
    row = torch.arange(16.0).expand(1, 1, 32, 16)
    PaddedBody(net, 32, ())(row)
    mirrored = [*range(8, 0, -1), *range(16), *range(14, 6, -1)]
    assert net.seen[0, 0, 0].tolist() == mirrored
    whole = torch.rand(1, 1, 32, 64)
    PaddedBody(net, 32, ())(whole)
    assert net.seen is whole


def test_a_side_smaller_than_its_margin_is_repeated() -> None:
    net = _Multiples()
    PaddedBody(net, 32, ())(torch.arange(2.0).expand(1, 1, 32, 2))
    assert net.seen[0, 0, 0].tolist() == [0.0] * 16 + [1.0] * 16


# --- names and options


def test_an_unknown_body_lists_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown body 'unot'.*unet, smp-unet"):
        build_body("unot", classes=2)


def test_an_unknown_option_names_the_body_the_option_and_those_it_takes() -> None:
    message = r"body 'hrnet-w48' takes no option 'witdh'; it takes: width, stem_stride"
    with pytest.raises(ModelError, match=message):
        build_body("hrnet-w48", classes=2, options={"witdh": "w18"})


def test_inputs_are_no_option() -> None:
    with pytest.raises(ModelError, match="takes no option 'inputs'"):
        build_body("unet", classes=2, options={"inputs": 4})


def test_options_and_their_defaults_can_be_asked_for() -> None:
    assert body_options("segformer") == {"encoder": "mit_b0", "channels": 256}
    for name in BODIES.names():
        json.dumps(body_options(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet", {"widths": []}),
        ("unet", {"widths": "ab"}),
        ("unet", {"widths": [-4]}),
        ("smp-unet", {"channels": 3}),
        ("pspnet", {"depth": 9}),
        ("deeplabv3plus", {"stride": 32}),
        ("fpn", {"channels": 96 + 1}),
        ("fpn", {"channels": 32}),
        ("hrnet-w48", {"width": "w47"}),
        ("hrnet-w48", {"stem_stride": 3}),
        ("segformer", {"encoder": "nonsense"}),
        ("segformer", {"encoder": 7}),
    ],
)
def test_values_that_do_not_work_are_model_errors(
    name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ModelError):
        build_body(name, classes=2, options=options)


def test_options_that_fit_in_no_card_are_refused() -> None:
    with pytest.raises(ModelError, match="must be JSON"):
        build_body("unet", classes=2, options={"widths": {4, 8}})


@pytest.mark.parametrize("counts", [{"classes": 0}, {"classes": 2, "inputs": 0}])
def test_channels_must_be_one_or_more(counts: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="expected 1 or more"):
        build_body("unet", **counts)  # type: ignore[arg-type]


def test_encoders_of_timm_can_be_chosen() -> None:
    options = {"encoder": "tu-mobilenetv3_small_050", "channels": [16, 16, 8, 8, 8]}
    body = build_body("smp-unet", classes=2, options=options).eval()
    assert body(torch.rand(1, 3, 33, 40)).shape == (1, 2, 33, 40)


def test_an_unknown_width_lists_those_there_are() -> None:
    with pytest.raises(ModelError, match="unknown HRNet width 'w47'; there are: w18-"):
        build_body("hrnet-w48", classes=2, options={"width": "w47"})


@pytest.mark.parametrize("stride", [1, 2])
def test_hrnets_stem_sets_the_finest_scale(stride: int) -> None:
    options = {"width": "w18-small", "stem_stride": stride}
    body: Any = build_body("hrnet-w48", classes=2, options=options).eval()
    assert body.multiple == (8 if stride == 1 else 32)
    image = torch.rand(1, 3, 32, 64)
    finest = body.net.backbone(image)[0]
    assert finest.shape[-2:] == (32 // stride**2, 64 // stride**2)
    assert body(image).shape == (1, 2, 32, 64)


def test_an_encoder_whose_finest_features_have_many_channels_can_be_cut() -> None:
    options = {"encoder": "vgg11", "channels": [8, 8, 8]}
    body = build_body("smp-unet", classes=2, options=options).eval()
    assert body(torch.rand(1, 3, 17, 20)).shape == (1, 2, 17, 20)


def test_stages_that_are_not_used_are_not_kept() -> None:
    body: Any = build_body("pspnet", classes=2)
    encoder = body.net.encoder
    # ResNet-18 up to its second stage: 157 504 + 525 568
    assert sum(p.numel() for p in encoder.parameters()) == 683_072
    assert not any("layer3" in name or "layer4.0" in name for name in body.state_dict())
    assert [*encoder.layer4.modules()] == [encoder.layer4]
    assert all(p.grad is None for p in body.parameters())
    assert body.training
    assert all(part.training for part in body.modules())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_body_made_without_gradients_can_be_trained(
    name: str, mode: Callable[[], AbstractContextManager[object]]
) -> None:
    with mode():
        body = build_body(name, classes=2, options=SMALL[name])
    body(torch.rand(2, 3, 16, 16)).sum().backward()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_of_hrnet_exists(width: str) -> None:
    with torch.device("meta"):
        body = build_body("hrnet-w48", classes=2, options={"width": width})
    image = torch.empty(1, 3, 16, 16, device="meta")
    assert body.eval()(image).shape == (1, 2, 16, 16)


# --- nothing is downloaded


class _ReachedNetworkError(Exception):
    pass


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise _ReachedNetworkError

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    # a part of the hub's client is no Python and opens its own sockets
    for module in (huggingface_hub, smp.encoders, timm.models._hub):
        monkeypatch.setattr(module, "hf_hub_download", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def test_the_guard_notices_a_download(no_network: None) -> None:
    with pytest.raises(_ReachedNetworkError):
        smp.Unet("resnet18", encoder_weights="imagenet")
    with pytest.raises(_ReachedNetworkError):
        timm.create_model("hf-hub:somebody/something")


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_downloaded(no_network: None, name: str) -> None:
    build_body(name, classes=2, options=SMALL[name])
    if "encoder" in body_options(name):
        build_body(name, classes=2, options={"encoder": "tu-resnet18"})


@pytest.mark.parametrize(
    "encoder",
    [
        *("tu-hf-hub:a/b", "tu-hf_hub:a/b", "tu-local-dir:/etc", "tu-../x"),
        *("tu-", "tu-tu-", "tu-nonsense", "tu-resnet18.a1_in1k", "resnet18:x"),
    ],
)
def test_encoder_names_cannot_reach_elsewhere(no_network: None, encoder: str) -> None:
    with pytest.raises(ModelError, match="unknown encoder"):
        build_body("fpn", classes=2, options={"encoder": encoder})


# --- optional packages


@pytest.mark.parametrize(
    ("package", "name"), [("segmentation_models_pytorch", "fpn"), ("timm", "hrnet-w48")]
)
def test_a_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("smp", "hrnet"):
        monkeypatch.delitem(
            sys.modules, f"wsi_pipeline.models.bodies.{module}", raising=False
        )
    with pytest.raises(ModelError, match=rf"{package}.*'wsi-pipeline\[bodies\]'"):
        build_body(name, classes=2)
    build_body("unet", classes=2)


# --- pretrained weights


def _encoder_file(tmp_path: Path, *, fill: float = 0.25) -> Path:
    """A ResNet-18 encoder as published: plain names, and a classifier."""
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    tensors = {
        name: torch.full_like(value, fill) if value.is_floating_point() else value
        for name, value in encoder.state_dict().items()
    }
    tensors |= {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    save_file(tensors, tmp_path / "encoder.safetensors")
    return tmp_path / "encoder.safetensors"


def test_an_encoders_file_fills_the_encoder_and_the_rest_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="wsi_pipeline"):
        body = build_body("fpn", classes=2, weights=_encoder_file(tmp_path, fill=3))
    state = body.state_dict()
    for name, value in state.items():
        if name.startswith("net.encoder.") and value.is_floating_point():
            assert bool((value == 3).all()), name
    assert not bool((state["net.segmentation_head.0.weight"] == 3).any())
    assert "2 in the file not used (fc.bias, fc.weight)" in caplog.text


def test_a_timm_file_fills_hrnets_backbone(tmp_path: Path) -> None:
    published = timm.create_model("hrnet_w18_small", pretrained=False)
    file = tmp_path / "hrnet.safetensors"
    save_file(published.state_dict(), file)
    body = build_body("hrnet-w48", classes=2, options=SMALL["hrnet-w48"], weights=file)
    own = body.state_dict()["net.backbone.stage4.0.branches.3.1.conv2.weight"]
    wanted = published.state_dict()["stage4.0.branches.3.1.conv2.weight"]
    assert torch.equal(own, wanted)
    unused = load_pretrained(body, file)
    assert {name.split(".")[0] for name in unused} == {
        "incre_modules",
        "downsamp_modules",
        "final_layer",
        "classifier",
    }


def test_a_timm_file_fills_an_encoder_of_timm(tmp_path: Path) -> None:
    published = timm.create_model("resnet18", pretrained=False)
    file = tmp_path / "timm.safetensors"
    save_file(published.state_dict(), file)
    body = build_body(
        "smp-unet", classes=2, options={"encoder": "tu-resnet18"}, weights=file
    )
    assert load_pretrained(body, file) == ("fc.bias", "fc.weight")


def test_a_whole_body_of_other_classes_keeps_its_own_head(tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    save_state(build_body("unet", classes=7, options=SMALL["unet"]), file)
    body = build_body("unet", classes=2, options=SMALL["unet"])
    assert load_pretrained(body, file) == ("head.bias", "head.weight")
    stored = load_file(file)
    assert torch.equal(body.state_dict()["up.0.0.weight"], stored["up.0.0.weight"])


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    file = tmp_path / "half.safetensors"
    save_state(build_body("unet", classes=2, options=SMALL["unet"]), file, half=True)
    body = build_body("unet", classes=2, options=SMALL["unet"], weights=file)
    assert {p.dtype for p in body.parameters()} == {torch.float32}


def _changed(file: Path, **changes: Tensor | None) -> Path:
    tensors = load_file(file)
    for name, value in changes.items():
        del tensors[name]
        if value is not None:
            tensors[name] = value
    save_file(tensors, file)
    return file


def test_a_file_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"speech.weight": torch.zeros(2)}, file)
    with pytest.raises(ModelError, match=r"fits nothing.*speech\.weight.*net\.encoder"):
        build_body("fpn", classes=2, weights=file)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"misses net\.encoder\.conv1\.weight"),
        (torch.zeros(64, 4, 7, 7), r"shape \(64, 4, 7, 7\).*needs \(64, 3, 7, 7\)"),
        (torch.full((64, 3, 7, 7), torch.nan), "not finite"),
    ],
)
def test_a_backbone_must_be_whole(
    tmp_path: Path, value: Tensor | None, message: str
) -> None:
    file = _changed(_encoder_file(tmp_path), **{"conv1.weight": value})
    with pytest.raises(ModelError, match=message):
        build_body("fpn", classes=2, weights=file)


def test_a_head_that_is_loaded_must_be_finite(tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    save_state(build_body("unet", classes=2, options=SMALL["unet"]), file)
    _changed(file, **{"head.bias": torch.full((2,), torch.inf)})
    with pytest.raises(ModelError, match=r"head\.bias holds values"):
        build_body("unet", classes=2, options=SMALL["unet"], weights=file)


def test_a_refused_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "whole.safetensors"
    body = build_body("unet", classes=2, options=SMALL["unet"])
    save_state(build_body("unet", classes=2, options=SMALL["unet"]), file)
    _changed(file, **{"up.0.0.weight": None})
    before = {name: value.clone() for name, value in body.state_dict().items()}
    with pytest.raises(ModelError, match="misses"):
        load_pretrained(body, file)
    assert all(torch.equal(v, before[n]) for n, v in body.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "bad.safetensors"
    if content is not None:
        file.write_bytes(content)
    cause = "missing" if content is None else "no readable"
    with pytest.raises(ModelError, match=rf"bad\.safetensors: {cause}"):
        build_body("unet", classes=2, weights=file)


# --- bodies of other packages


def _install(folder: Path, entries: dict[str, str], package: str = "foreign") -> Path:
    """What an installer leaves of a package: its metadata, without its files."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    )
    lines = [f"{name} = {value}" for name, value in entries.items()]
    info.joinpath("entry_points.txt").write_text(
        "\n".join(["[wsi_pipeline.bodies]", *lines, ""])
    )
    return folder


_USE_FOREIGN = """
import sys
from pathlib import Path
import torch
from wsi_pipeline.models.bodies import BODIES, build_body
from wsi_pipeline.models.weights import load_state, save_state

assert "one-convolution" in BODIES.names()
make = lambda: build_body("one-convolution", classes=2, options={"channels": 6})
first, second = make(), make()
image = torch.rand(1, 3, 17, 19)
assert first(image).shape == (1, 2, 17, 19)
assert not torch.equal(first(image), second(image))
save_state(first, Path(sys.argv[1]))
load_state(second, Path(sys.argv[1]))
assert torch.equal(first(image), second(image))
print(type(first).__module__, first.trunk.out_channels)
"""


def test_an_installed_packages_body_is_built_saved_and_loaded(tmp_path: Path) -> None:
    project = tomllib.loads((FOREIGN / "pyproject.toml").read_text())["project"]
    _install(tmp_path, project["entry-points"]["wsi_pipeline.bodies"])
    paths = [str(tmp_path), str(FOREIGN), str(FOREIGN.parent.parent)]
    done = subprocess.run(
        [sys.executable, "-c", _USE_FOREIGN, str(tmp_path / "one.safetensors")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["foreign_body", "6"]


def test_pretrained_weights_fit_a_foreign_body_but_for_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, {"one": "foreign_body:OneConvolution"})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(FOREIGN)
    file = tmp_path / "trunk.safetensors"
    trunk = build_body("one", classes=2).state_dict()
    save_file({name: trunk[name] for name in ("trunk.weight", "trunk.bias")}, file)
    body = build_body("one", classes=3, weights=file)
    assert torch.equal(body.state_dict()["trunk.weight"], trunk["trunk.weight"])


def test_a_claimed_name_is_an_error_only_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, {"fpn": "foreign_body:OneConvolution", "twin": "a:b"}, "one")
    _install(tmp_path, {"twin": "foreign_body:OneConvolution"}, "two")
    monkeypatch.syspath_prepend(tmp_path)
    assert BODIES.names() == (*SMALL, "twin")
    build_body("unet", classes=2)
    with pytest.raises(
        ModelError, match=r"'fpn' is claimed by wsi-pipeline and by one"
    ):
        BODIES.load("fpn")
    with pytest.raises(
        ModelError, match=r"claimed by (one 1.0 and by two|two 1.0 and)"
    ):
        BODIES.load("twin")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module_anywhere:Body", "ModuleNotFoundError"),
        ("foreign_body:NoSuchBody", "AttributeError"),
        ("explodes:Body", "ZeroDivisionError"),
        ("not a reference", "cannot be loaded"),
        ("explodes_not:NUMBER", "is a int, expected a callable"),
    ],
)
def test_a_broken_entry_point_is_an_error_only_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    _install(tmp_path, {"broken": value})
    tmp_path.joinpath("explodes.py").write_text("1 / 0\n")
    tmp_path.joinpath("explodes_not.py").write_text("NUMBER = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(FOREIGN)
    assert "broken" in BODIES.names()
    build_body("unet", classes=2)
    with pytest.raises(ModelError, match=f"'broken' of foreign 1.0.*{message}"):
        build_body("broken", classes=2)


def test_a_foreign_builder_must_return_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, {"number": "numbers_only:build"})
    tmp_path.joinpath("numbers_only.py").write_text(
        "def build(inputs, classes, **anything):\n    return classes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="is a int, expected a torch"):
        build_body("number", classes=2, options={"any": "thing"})


# --- FLOPs


def test_flops_of_a_convolution_by_hand() -> None:
    # 2 per multiply-add: n x h x w x outputs x (inputs x 3 x 3)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert count_flops(conv, torch.rand(2, 3, 10, 12)) == 2 * 2 * 10 * 12 * 8 * 27
    strided = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
    assert count_flops(strided, torch.rand(1, 4, 8, 8)) == 2 * 4 * 4 * 8 * (2 * 9)


def test_counting_leaves_the_module_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    count_flops(net, torch.rand(1, 3, 1, 1))
    assert [part.training for part in net.modules()] == [True, True, False, True]
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())


class _NoGraph(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.training
        return image @ image


def test_counting_keeps_no_activations() -> None:
    assert count_flops(_NoGraph(), torch.rand(4, 4)) == 2 * 4 * 4 * 4


def test_a_failing_count_also_restores_the_module() -> None:
    net = nn.Conv2d(3, 4, 1)
    with pytest.raises(RuntimeError):
        count_flops(net, torch.rand(1, 2, 5, 5))
    assert net.training


@pytest.mark.parametrize("name", SMALL)
def test_every_body_is_counted_and_the_device_meta_counts_alike(
    small: dict[str, nn.Module], name: str
) -> None:
    counted = count_flops(small[name], torch.rand(1, 3, 32, 32))
    weightless = build_body(name, classes=5, options=SMALL[name]).to("meta")
    there = count_flops(weightless, torch.empty(1, 3, 32, 32, device="meta"))
    assert counted == there > 1_000_000


@pytest.mark.parametrize(
    ("size", "gflop"), [((32, 64), 25.95), ((64, 128), 103.8), ((128, 256), 415.2)]
)
def test_hrnet_w48_costs_what_the_paper_s_segmenter_costs(
    size: tuple[int, int], gflop: float
) -> None:
    with torch.device("meta"):
        body = build_body("hrnet-w48", classes=19)
    flops = count_flops(body, torch.empty(1, 3, *size, device="meta"))
    assert flops == pytest.approx(gflop * 1e9, rel=0.05)
    # Jin et al.'s net, counted from their code: 66.5 M
    count = sum(p.numel() for p in body.parameters())
    assert count == pytest.approx(66.5e6, rel=0.03)
