"""Weights of the official IPS code give the same logits and predictions here."""

import math
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn

from wsi_pipeline.errors import ConfigError, ModelError, UnknownNameError
from wsi_pipeline.models.encoders import build_encoder, reads_features
from wsi_pipeline.models.official import from_official
from wsi_pipeline.models.selector import SelectorNet, SelectorShape

FEATURES = 24
TASKS = ("metastasis", "necrosis")
SHAPE = SelectorShape(f"ips-features:{FEATURES}", 32, 4, 8, 48)
IMAGE_SHAPE = SelectorShape("ips:resnet18", 512, 8, 64, 128)


# The official net in other words: its names, its layers, its order of operations.


class Queries(nn.Module):
    def __init__(self, shape: SelectorShape, tokens: int) -> None:
        super().__init__()
        self.heads, self.size = shape.heads, shape.key_width
        inner = self.heads * self.size
        self.q = nn.Parameter(torch.randn(1, tokens, shape.width))
        self.q_w, self.k_w, self.v_w = (
            nn.Linear(shape.width, inner, bias=False) for _ in range(3)
        )
        self.fc = nn.Linear(inner, shape.width, bias=False)
        self.layer_norm = nn.LayerNorm(shape.width, eps=1e-6)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.size)).transpose(1, 2)  # b H n d

    def logits(self, x: Tensor) -> Tensor:
        q, k = self.split(self.q_w(self.q)), self.split(self.k_w(x))
        return q / math.sqrt(self.size) @ k.transpose(2, 3)  # b H T n

    def forward(self, x: Tensor) -> Tensor:
        heads = self.logits(x).softmax(-1) @ self.split(self.v_w(x))  # b H T d
        return self.layer_norm(self.fc(heads.transpose(1, 2).flatten(2)) + self.q)


class Inner(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.w_2(self.w_1(x).relu()) + x)


class Official(nn.Module):
    def __init__(
        self, encoder: nn.Module, shape: SelectorShape, tasks: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        attention = Queries(shape, len(tasks))
        inner = Inner(shape.width, shape.inner_width)
        self.transf = nn.ModuleDict({"crs_attn": attention, "mlp": inner})
        self.output_layers = nn.ModuleDict(
            {
                task: nn.Sequential(nn.Linear(shape.width, 1), nn.Sigmoid())
                for task in tasks
            }
        )

    def embed(self, patches: Tensor) -> Tensor:
        return self.encoder(patches).view(len(patches), -1)

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        crs_attn, mlp = self.transf["crs_attn"], self.transf["mlp"]
        tokens = mlp(crs_attn(self.embed(patches)[None]))
        layers = enumerate(self.output_layers.items())
        return {task: layer(tokens[:, t]) for t, (task, layer) in layers}


def official_projector() -> Official:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.LayerNorm(FEATURES, elementwise_affine=False),
        nn.Linear(FEATURES, SHAPE.width),
        nn.BatchNorm1d(SHAPE.width),
        nn.ReLU(),
    )
    return _trained(Official(encoder, SHAPE, TASKS))


def official_resnet() -> Official:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None)
    stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    encoder = nn.Sequential(
        net.conv1, net.bn1, net.relu, net.maxpool, *stages, net.avgpool
    )
    return _trained(Official(encoder, IMAGE_SHAPE, TASKS))


def _trained(net: Official) -> Official:
    """With batch statistics and norms that a training would leave behind."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif "norm" in name:
                value.add_(torch.randn_like(value) * 0.1)
    return net.eval()


@pytest.mark.parametrize("kind", ["projector", "resnet"])
def test_logits_and_predictions_are_those_of_the_official_net(kind: str) -> None:
    if kind == "projector":
        official, shape = official_projector(), SHAPE
        theirs = ours = torch.randn(9, FEATURES)
    else:
        official, shape = official_resnet(), IMAGE_SHAPE
        ours = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        theirs = (ours / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    net = SelectorNet(shape, TASKS).eval()
    net.load_state_dict(from_official(official.state_dict(), shape, TASKS))
    with torch.no_grad():
        x = net.embed(ours)
        wanted = official.transf["crs_attn"].logits(official.embed(theirs)[None])
        wanted = wanted[0].permute(2, 0, 1).flatten(1)  # H, T, n to n, H * T
        torch.testing.assert_close(net.logits(x), wanted, rtol=1e-5, atol=1e-5)
        chances = net.predict(x[None]).sigmoid()
        wanted = torch.cat(list(official(theirs).values()), dim=1)
        torch.testing.assert_close(chances, wanted, rtol=0, atol=1e-5)
        assert abs(float(chances[0, 0] - chances[0, 1])) > 1e-3


def test_tasks_are_found_by_name_whatever_their_order_in_the_file() -> None:
    state = official_projector().state_dict()
    one, two = (from_official(state, SHAPE, tasks) for tasks in (TASKS, TASKS[::-1]))
    assert torch.equal(one["outputs.0.weight"], two["outputs.1.weight"])


def test_reading_draws_no_random_number() -> None:
    state = official_projector().state_dict()
    before = torch.get_rng_state()
    from_official(state, SHAPE, TASKS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transf.crs_attn.q", None, "miss 1 tensors .transf.crs_attn.q,"),
        ("encoder.2.running_var", None, "miss 1 tensors .encoder.2.running_var,"),
        ("transf.pos", torch.zeros(1), "have unknown 1 tensors .transf.pos,"),
        (
            "output_layers.necrosis.0.weight",
            torch.zeros(4, 32),
            "output_layers.necrosis.0.weight is for 4 classes",
        ),
        (
            "transf.crs_attn.v_w.weight",
            torch.zeros(64, 32),
            r"v_w.weight has shape \(64, 32\), .* needs \(32, 32\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    name: str, value: Tensor | None, message: str
) -> None:
    state = official_projector().state_dict()
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(ModelError, match=message):
        from_official(state, SHAPE, TASKS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "features:24"}, "built alike.*got 'features:24'"),
        ({"encoder": "small"}, "built alike.*got 'small'"),
        ({"position": True}, "know no places"),
    ],
)
def test_a_shape_that_the_official_code_does_not_have_is_refused(
    change: dict[str, object], message: str
) -> None:
    state = official_projector().state_dict()
    with pytest.raises(ModelError, match=message):
        from_official(state, replace(SHAPE, **change), TASKS)


# the encoders


def test_batch_norms_keep_their_statistics_in_training() -> None:
    for name, patches in (
        ("ips:resnet18", torch.rand(4, 3, 32, 32)),
        ("ips-features:24", torch.randn(4, 24)),
    ):
        encoder = build_encoder(name, 512).train()
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        together = encoder(patches)
        alone = torch.cat([encoder(patches[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        assert encoder.training
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, before[key])


def test_an_encoder_that_the_official_code_does_not_have_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="ips:resnet18, ips:resnet50"):
        build_encoder("ips:vgg", 512)
    with pytest.raises(ConfigError, match="embeddings of 2048, got a width of 512"):
        build_encoder("ips:resnet50", 512)
    with pytest.raises(ModelError, match="features of length 24, got an array"):
        build_encoder("ips-features:24", 32)(torch.zeros(2, 25))


def test_official_features_are_features_to_the_rest() -> None:
    assert reads_features(SHAPE.encoder)
    assert not reads_features(IMAGE_SHAPE.encoder)
