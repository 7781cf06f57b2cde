"""Foreign checkpoints run no code: each is refused before it is loaded."""

import hashlib
import io
import json
import math
import os
import pickle
import shlex
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from tests.models import selector_model
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models import cards, scoring, weights
from wsi_pipeline.models.cards import ModelFolder, find_model
from wsi_pipeline.models.foreign import CONVERT, PICKLED
from wsi_pipeline.models.scoring import load_selector
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import load_state, save_state, tensor_names

pytestmark = pytest.mark.promise("R12")
CONVERTED = r"may run any code .* convert"
SHAPE = SelectorShape("features:4", 4, 1, 2, 4)
FLOAT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What a payload would make; checked after every test."""
    return tmp_path / "canary"


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    """A whole model of a selector alone."""
    folder = tmp_path / "model"
    folder.mkdir()
    net = SelectorNet(SHAPE, ("a",))
    return selector_model(folder, net, patch_px=8, top_m=1, mpp=1.0)


def tampered(model: ModelFolder, data: bytes, name: str = "") -> ModelFolder:
    """The model with another file of weights, whose sha256 its card states."""
    part = model.card.selector
    file = name or part.file
    (model.path / file).write_bytes(data)
    known = {"file": file, "sha256": hashlib.sha256(data).hexdigest()}
    card = model.card.model_copy(update={"selector": part.model_copy(update=known)})
    return ModelFolder(model.path, card)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def torch_file(value: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, data in members.items():
            packed.writestr(name.replace("__", "/"), data)
    return stream.getvalue()


def sparse() -> torch.Tensor:
    """Indices far outside: torch believes them, and dies where it uses them."""
    size, far = (2, 2), torch.tensor([[10**9], [10**9]])
    return torch.sparse_coo_tensor(far, torch.ones(1), size, check_invariants=False)


PICKLES: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda canary: pickle.dumps(Payload(canary)),
    "old pickle": lambda canary: pickle.dumps(Payload(canary), protocol=2),
    "torch.save": lambda canary: torch_file({"a": Payload(canary)}),
    "torch.save, legacy": lambda canary: torch_file(
        {"a": Payload(canary)}, _use_new_zipfile_serialization=False
    ),
    "TorchScript": lambda canary: archive(
        m__code____torch__=b"def forward(self): ...",
        m__data__pkl=pickle.dumps(Payload(canary)),
    ),
    ".pt2": lambda canary: archive(
        archive_format=b"pt2", m__models__weights=pickle.dumps(Payload(canary))
    ),
    "sparse": lambda canary: torch_file({"a": sparse()}),
}
HEADERS: dict[str, bytes] = {
    "empty": b"",
    "cut": safetensors({"a": FLOAT})[:20],
    "huge header": safetensors(b"{}", length=2**62),
    "header beyond the file": safetensors(b"{}", length=10**8 - 1),
    "overlap": safetensors(
        {"a": FLOAT, "b": FLOAT | {"data_offsets": [2, 6]}}, bytes(6)
    ),
    "hole": safetensors({"a": FLOAT, "b": FLOAT | {"data_offsets": [8, 12]}}, bytes(9)),
    "shape that lies": safetensors({"a": FLOAT | {"shape": [100]}}, bytes(4)),
    "offsets beyond the file": safetensors({"a": FLOAT}),
    "more data than stated": safetensors({"a": FLOAT}, bytes(400)),
    "negative offset": safetensors({"a": FLOAT | {"data_offsets": [-4, 0]}}, bytes(4)),
    "overflow": safetensors(
        {"a": FLOAT | {"shape": [2**32] * 2, "data_offsets": [0, 0]}}
    ),
    "nothing times 2**63": safetensors(
        {"a": FLOAT | {"shape": [0, 2**63], "data_offsets": [0, 0]}}
    ),
    "deep header": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no text": safetensors(b'{"\xff":1}'),
    "unknown dtype": safetensors({"a": FLOAT | {"dtype": "O"}}, bytes(4)),
    "unknown tensor": safetensors({"a": FLOAT}, bytes(4)),
}


def test_the_payload_works_where_it_is_loaded(canary: Path) -> None:
    pickle.loads(PICKLES["pickle"](canary)).close()  # noqa: S301  # our own
    assert canary.exists()


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_are_refused_unread_with_a_way_to_convert(
    model: ModelFolder, canary: Path, kind: str
) -> None:
    data = PICKLES[kind](canary)
    for name in ("selector.safetensors", *(f"selector{end}" for end in PICKLED)):
        with pytest.raises(ModelError, match=CONVERTED):
            load_selector(tampered(model, data, name))
        for read in (tensor_names, weights.read_tensors):
            with pytest.raises(ModelError, match=CONVERTED):
                read(model.path / name)
        if name != "selector.safetensors":
            with pytest.raises(ModelError, match=CONVERTED):
                find_model(model.path / name)
    assert not canary.exists()


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_lie_are_refused(model: ModelFolder, kind: str) -> None:
    with pytest.raises(ModelError, match=r"selector\.safetensors"):
        load_selector(tampered(model, HEADERS[kind]))


def stored(model: ModelFolder) -> dict[str, torch.Tensor]:
    return load_file(model.path / model.card.selector.file)


def other_content(model: ModelFolder) -> ModelFolder:
    tensors = {name: value + 1 for name, value in stored(model).items()}
    (model.path / model.card.selector.file).write_bytes(save(tensors))
    return model


def linked(model: ModelFolder) -> ModelFolder:
    file = model.path / model.card.selector.file
    file.symlink_to(file.rename(model.path.parent / "elsewhere.safetensors"))
    return model


def filled(value: float) -> Callable[[ModelFolder], ModelFolder]:
    def fill(model: ModelFolder) -> ModelFolder:
        tensors = stored(model)
        next(iter(tensors.values())).fill_(value)
        return tampered(model, save(tensors))

    return fill


def odd_numbers(model: ModelFolder) -> ModelFolder:
    tensors = {k: v.to(torch.float8_e4m3fn) for k, v in stored(model).items()}
    return tampered(model, save(tensors))


def renamed(model: ModelFolder) -> ModelFolder:
    return tampered(model, save(stored(model)), "selector.pt")


def greedy(model: ModelFolder) -> ModelFolder:
    """A card whose net takes 4 PB."""
    asked = model.card.selector.architecture | {"width": 10**6, "inner_width": 10**9}
    part = model.card.selector.model_copy(update={"architecture": asked})
    return ModelFolder(model.path, model.card.model_copy(update={"selector": part}))


GUARDS = {
    "wrong sha256": (other_content, "sha256", cards, "sha256_file", None),
    "link": (linked, "a link", Path, "is_symlink", lambda _: False),
    "NaN": (filled(math.nan), "not finite", torch, "isfinite", torch.ones_like),
    "infinity": (filled(math.inf), "not finite", torch, "isfinite", torch.ones_like),
    "float8": (odd_numbers, "float8", weights, "_DTYPES", {torch.float8_e4m3fn}),
    "name": (renamed, "may run", cards, "check_ending", lambda _: None),
}


@pytest.mark.parametrize("kind", GUARDS)
def test_a_file_that_only_one_guard_refuses(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    attack, words, place, name, harmless = GUARDS[kind]
    attacked = attack(model)
    with pytest.raises(ModelError, match=words):
        load_selector(attacked)
    # with the guard off it is taken
    sha256 = attacked.card.selector.sha256
    monkeypatch.setattr(place, name, harmless or (lambda _: sha256))
    monkeypatch.setattr(weights, "check_ending", lambda _: None)
    assert load_selector(attacked)


def test_a_card_that_asks_for_all_memory_is_refused_by_the_header(
    model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"has shape .* the architecture in the card"):
        load_selector(greedy(model))
    monkeypatch.setattr(scoring, "check_fit", lambda *_: None)
    with pytest.raises(RuntimeError, match="memory"):
        load_selector(greedy(model))


@pytest.mark.parametrize("kind", ["pipe", "folder", "gone"])
def test_weights_that_are_no_file_are_refused(model: ModelFolder, kind: str) -> None:
    file = model.path / model.card.selector.file
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    with pytest.raises(ModelError, match="missing"):
        load_selector(model)
    with pytest.raises(ModelError, match="missing"):
        tensor_names(file)


def test_a_card_that_is_a_pipe_is_refused(model: ModelFolder) -> None:
    card = model.path / "card.json"
    card.unlink()
    os.mkfifo(card)
    with pytest.raises(ModelError, match="no regular file"):
        find_model(model.path)


def test_what_the_refusal_says_converts_a_state_dict(
    model: ModelFolder, tmp_path: Path
) -> None:
    net = SelectorNet(SHAPE, ("a",))
    old, new = tmp_path / "old.pt", tmp_path / "new.safetensors"
    torch.save(net.state_dict(), old)
    words = shlex.split(CONVERT)[1:-2]
    subprocess.run([sys.executable, *words, old, new], check=True)
    again = SelectorNet(SHAPE, ("a",))
    load_state(again, new)
    first = save_state(net, tmp_path / "a.safetensors")
    assert save_state(again, tmp_path / "b.safetensors") == first
    assert find_model(model.path).card == model.card  # a whole one is still taken
    assert load_selector(model)
