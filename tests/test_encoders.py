"""Encoders by name: ResNets, timm models, projectors of features; local weights."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsi_pipeline.errors import ConfigError, ModelError, UnknownNameError
from wsi_pipeline.models.backbones import replace_batch_norms
from wsi_pipeline.models.bodies.pretrained import load_pretrained
from wsi_pipeline.models.encoders import (
    ENCODERS,
    build_encoder,
    frozen_name,
    reads_features,
)
from wsi_pipeline.models.projector import FeatureEncoder

TIMM = ("timm:resnet10t", "timm-frozen:resnet10t", "timm:vit_tiny_patch16_224")
"""A net with batch norms that hold their activation, and one made for 224 px."""


def needs_timm(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed (extra bodies)")


def patches(n: int, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, side, side), generator=generator).byte()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet18-frozen", *TIMM, "features:20"])
def test_patches_do_not_influence_each_other_in_training_either(
    name: str, training: bool
) -> None:
    needs_timm(name)
    torch.manual_seed(0)
    encoder = build_encoder(name, 12).double().train(training)
    x = torch.randn(4, 20) if reads_features(name) else patches(4)
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    with torch.no_grad():
        together = encoder(x)
        alone = torch.cat([encoder(x[i : i + 1]) for i in range(4)])
    assert together.shape == (4, 12)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    assert all(torch.equal(state[k], v) for k, v in encoder.state_dict().items())


@pytest.mark.parametrize("name", [*ENCODERS.names(), "features:20"])
def test_every_weight_learns(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, 12).train()
    x = torch.randn(4, 20) if reads_features(name) else patches(4)
    (encoder(x) * torch.randn(4, 12)).sum().backward()
    still = [
        n
        for n, p in encoder.named_parameters()
        if p.grad is None or not bool(p.grad.any())
    ]
    assert not still


def test_group_norms_keep_scale_shift_and_activation() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra bodies)")
    from timm.layers import BatchNormAct2d

    assert timm
    plain, active = nn.BatchNorm2d(6), BatchNormAct2d(48)
    body = nn.Sequential(plain, nn.Conv2d(6, 48, 1), active)
    with torch.no_grad():
        for norm in (plain, active):
            norm.weight.uniform_(1, 2)
            norm.bias.uniform_(-1, 1)
    replace_batch_norms(body)
    assert [body[0].num_groups, body[2][0].num_groups] == [3, 24]
    assert torch.equal(body[0].weight, plain.weight)
    assert torch.equal(body[2][0].bias, active.bias)
    out = body(torch.randn(2, 6, 4, 4))
    assert bool((out >= 0).all())  # the activation is still there


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 1), (5, 1), (64, 32)])
def test_a_group_has_two_channels_where_there_are_two(
    channels: int, groups: int
) -> None:
    body = nn.Sequential(nn.BatchNorm2d(channels))
    replace_batch_norms(body)
    assert body[0].num_groups == groups


def test_the_projector_is_the_published_one_but_for_its_second_norm() -> None:
    torch.manual_seed(0)
    encoder = FeatureEncoder(8, "20")
    x = 5 * torch.randn(3, 20) + 2
    linear = encoder.net[1]
    y = nn.functional.layer_norm(linear(nn.functional.layer_norm(x, (20,))), (8,))
    torch.testing.assert_close(encoder(x), y.relu())
    # the first norm has no weights; the second does
    assert [n for n, _ in encoder.named_parameters()] == [
        "net.1.weight", "net.1.bias", "net.2.weight", "net.2.bias",
    ]  # fmt: skip
    assert encoder(x.half()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 19), (3, 20, 1), (3, 3, 8, 8)])
def test_a_projector_refuses_other_features(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="length 20, got"):
        FeatureEncoder(8, "20")(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vgg", "small, resnet18, resnet50.*timm:NAME.*features:LENGTH"),
        ("small:x", "there are: small"),
        ("timm", "there are: small"),
        ("features:", "length of a feature"),
        ("features:0", "length of a feature"),
        ("features:²", "length of a feature"),
        ("timm:nope", r"timm\.list_models"),
        ("timm:hf-hub:somebody/model", r"timm\.list_models"),
        ("timm:local-dir:/models", r"timm\.list_models"),
    ],
)
def test_unknown_names_are_refused_with_those_there_are(name: str, words: str) -> None:
    needs_timm(name)
    with pytest.raises(UnknownNameError, match=words):
        build_encoder(name, 8)


def test_an_unknown_tag_is_a_model_error() -> None:
    needs_timm("timm:")
    with pytest.raises(ModelError, match=r"resnet18\.nope"):
        build_encoder("timm:resnet18.nope", 8)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wsi_pipeline.models.timm_encoder", raising=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"wsi-pipeline\[bodies\]"):
        build_encoder("timm:resnet18", 8)


def test_features_are_not_resized() -> None:
    with pytest.raises(ConfigError, match="--resizer"):
        build_encoder("features:8", 8, "bilinear", 32)


def test_timm_models_see_pixels_as_they_were_made_for() -> None:
    needs_timm("timm:")
    encoder = build_encoder("timm:vit_tiny_patch16_224", 8)
    assert encoder.input.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("resnet18", "resnet18-frozen"),
        ("timm:resnet18", "timm-frozen:resnet18"),
        ("resnet50-frozen", "resnet50-frozen"),
        ("small", "small"),
        ("features:8", "features:8"),
    ],
)
def test_the_frozen_kind_of_an_encoder(name: str, frozen: str) -> None:
    assert frozen_name(name) == frozen


def test_torchvision_weights_fill_a_frozen_resnet_whatever_their_head(
    tmp_path: Path,
) -> None:
    import torchvision

    torch.manual_seed(0)
    source = torchvision.models.resnet18(weights=None)
    for part in source.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(1, 2)
    save_file(source.state_dict(), tmp_path / "resnet18.safetensors")
    encoder = build_encoder("resnet18-frozen", 12)
    unused = load_pretrained(encoder.body, tmp_path / "resnet18.safetensors")
    assert unused == ("fc.bias", "fc.weight")
    source.fc = nn.Identity()
    x = encoder.input(patches(2))
    with torch.no_grad():
        torch.testing.assert_close(encoder.train().body(x), source.eval()(x))
    with pytest.raises(ModelError, match="misses"):  # group norms have other names
        save_file(
            {"conv1.weight": source.conv1.weight.detach()},
            tmp_path / "part.safetensors",
        )
        load_pretrained(encoder.body, tmp_path / "part.safetensors")
