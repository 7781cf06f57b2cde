"""Keeps a training between two steps in one file, from which it goes on bit for bit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.publishing import json_bytes, publish_bytes

_HEADER = "training"
_TRAINED = "parameters with a gradient"
_MOMENTS = "exp_avg", "exp_avg_sq"  # of AdamW, beside its own counter "step"


@dataclass
class Training:
    """A training between two steps; who trains moves it on in place.

    Parameters
    ----------
    module : torch.nn.Module
        What is fitted.
    averaged : torch.optim.swa_utils.AveragedModel
        Moving average of its parameters and buffers.
    optimizer : torch.optim.Optimizer
        AdamW on the module's parameters.
    done : int
        Steps taken.
    seconds : float
        Time they took, over all runs.
    history : dict of str to list of float
        "loss" and its parts, one value per step.
    """

    module: nn.Module
    averaged: AveragedModel
    optimizer: Optimizer
    done: int = 0
    seconds: float = 0.0
    history: dict[str, list[float]] = field(default_factory=dict)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    facts: dict[str, Any]  # whatever JSON holds: it is compared, not used
    trained: list[str]
    done: PositiveInt
    seconds: NonNegativeFloat


def save_checkpoint(
    file: Path, training: Training, facts: Mapping[str, object], random: Tensor
) -> None:
    """Write a training so that the name shows the old or the new state, whole.

    Parameters
    ----------
    file : Path
        A safetensors file; its metadata hold what is no tensor, as JSON.
    training : Training
        After at least one step.
    facts : mapping
        JSON values that have to be the same where it goes on.
    random : (ranks, n) uint8 tensor
        State of the random generators.

    Raises
    ------
    ExportError
        If the file cannot be written.

    Notes
    -----
    Memory: twice the tensors of the module, of its average and of the optimizer.
    """
    tensors = {**_weights(training), **_moments(training), "random": random}
    for name, values in training.history.items():
        tensors[f"history.{name}"] = torch.tensor(values, dtype=torch.float64)
    header = _Header(
        format=1,
        facts=dict(facts),
        trained=_trained(training.module),
        done=training.done,
        seconds=training.seconds,
    )
    # own memory each: safetensors refuses tensors that share it, as tied weights do
    kept = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in tensors.items()
    }
    metadata = {_HEADER: json_bytes(header.model_dump()).decode()}
    publish_bytes(file, save(kept, metadata))


def load_checkpoint(
    file: Path, training: Training, facts: Mapping[str, object], random: Tensor
) -> Tensor:
    """Bring a training to where a file left it; nothing changes if the file is unfit.

    Parameters
    ----------
    file : Path
        What `save_checkpoint` wrote.
    training : Training
        Freshly begun; its tensors keep their places in memory.
    facts : mapping
        JSON values that have to be the same.
    random : (ranks, n) uint8 tensor
        State of the random generators now; only its shape counts.

    Returns
    -------
    (ranks, n) uint8 tensor
        The state to go on with.

    Raises
    ------
    ConfigError
        If the file cannot be read or belongs to another training; names the file and
        what differs.
    """
    try:
        header, stored = _read(file)
        _compare(header, facts, _trained(training.module))
        weights, history = _weights(training), _history(header.done, stored)
        _same_tensors({**weights, "random": random}, stored)
        moments = dict(_read_moments(training, stored))
        known = {*weights, "random", *(f"history.{name}" for name in history)}
        _no_others(stored, known, moments)
    except _UnfitError as error:
        raise ConfigError(
            f"{file}: cannot go on from this checkpoint: {error}; "
            "delete the file to start anew"
        ) from error
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(stored[name])
    for name, parameter in training.module.named_parameters():
        if name in moments:
            training.optimizer.state[parameter] = moments[name]
    training.done, training.seconds = header.done, header.seconds
    training.history = history
    return stored["random"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, in the memory that the module uses."""
    state = module.state_dict()
    return {name: t for name, t in state.items() if isinstance(t, Tensor)}


@torch.no_grad()
def fill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into a module's tensors, which stay where they are."""
    for name, tensor in tensors_of(module).items():
        tensor.copy_(values[name])


def random_state(device: torch.device) -> Tensor:
    """(n,) uint8 state of torch's generators: the CPU's, then the device's."""
    parts = [torch.get_rng_state()]
    if device.type != "cpu":
        parts.append(torch.get_device_module(device).get_rng_state(device))
    return torch.cat(parts)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Set torch's generators to what `random_state` gave."""
    split = len(torch.get_rng_state())
    torch.set_rng_state(state[:split].clone())
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.set_rng_state(state[split:].clone(), device)


class _UnfitError(Exception):
    """What is wrong with a checkpoint, in a few words."""


def _read(file: Path) -> tuple[_Header, dict[str, Tensor]]:
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise _UnfitError(f"no readable safetensors file ({error})") from error
    try:
        return _Header.model_validate_json(metadata.get(_HEADER, "")), stored
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"])) or "header"
        raise _UnfitError(f"no checkpoint of ours ({place}: {wrong['msg']})") from error


def _compare(header: _Header, facts: Mapping[str, object], trained: list[str]) -> None:
    # by way of JSON, as the file went: tuples become lists
    here = orjson.loads(json_bytes(dict(facts)))
    there, here = header.facts | {_TRAINED: header.trained}, here | {_TRAINED: trained}
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise _UnfitError(
                f"{key} is {_short(there.get(key))} there and "
                f"{_short(here.get(key))} here"
            )


def _same_tensors(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        if name not in stored:
            raise _UnfitError(f"it misses {name}")
        found = stored[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise _UnfitError(
                f"{name} is {tuple(found.shape)} {found.dtype} there and "
                f"{tuple(tensor.shape)} {tensor.dtype} here"
            )


def _no_others(
    stored: Mapping[str, Tensor],
    known: set[str],
    moments: Mapping[str, Mapping[str, Tensor]],
) -> None:
    claimed = {f"optimizer.{n}.{key}" for n, state in moments.items() for key in state}
    others = sorted(stored.keys() - known - claimed)
    if others:
        raise _UnfitError(f"it holds {others[0]}, which is unknown here")


def _weights(training: Training) -> dict[str, Tensor]:
    """Tensors of the module and of its average, by their names in the file."""
    parts: dict[str, nn.Module] = {
        "module": training.module,
        "averaged": training.averaged,
    }
    return {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in tensors_of(module).items()
    }


def _moments(training: Training) -> dict[str, Tensor]:
    """What AdamW remembers, by parameter."""
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in training.module.named_parameters()
        for key, value in training.optimizer.state.get(parameter, {}).items()
    }


def _read_moments(
    training: Training, stored: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """State of AdamW per parameter; one that never had a gradient has none."""
    for name, parameter in training.module.named_parameters():
        prefix = f"optimizer.{name}."
        if prefix + "step" not in stored:
            continue
        count = torch.zeros((), dtype=torch.float32)
        wanted = {prefix + key: parameter for key in _MOMENTS}
        _same_tensors({prefix + "step": count, **wanted}, stored)
        # strides as torch made them: kernels may round by the order in memory
        state = {
            key: torch.empty_like(parameter, requires_grad=False).copy_(
                stored[prefix + key]
            )
            for key in _MOMENTS
        }
        yield name, {"step": stored[prefix + "step"], **state}


def _history(done: int, stored: Mapping[str, Tensor]) -> dict[str, list[float]]:
    history = {
        name.removeprefix("history."): values
        for name, values in stored.items()
        if name.startswith("history.")
    }
    _same_tensors(
        {"history.loss": torch.empty(done, dtype=torch.float64)},
        {f"history.{name}": values for name, values in history.items()},
    )
    for name, values in history.items():
        if values.shape != (done,):
            raise _UnfitError(f"history.{name} has {len(values)} steps, not {done}")
    return {name: values.tolist() for name, values in history.items()}


def _trained(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.requires_grad]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
