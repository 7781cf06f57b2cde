"""Fits a module to a loss: AdamW, warm-up and cosine, clipping, moving average."""

import functools
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.models.budget import report_memory
from wsi_pipeline.process import keep_freed_memory
from wsi_pipeline.training.checkpoints import (
    Training,
    fill,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
    tensors_of,
)
from wsi_pipeline.training.journal import Journal

_COLUMNS = "step", "loss", "lr", "seconds", "peak_bytes"
"""Columns of the journal that no part of a loss may be named like."""
_LARGEST_BYTES = 2**30
"""Of a tensor whose memory the heap keeps for the next step."""


@dataclass(frozen=True)
class LoopOptions:
    """How a module is fitted.

    Parameters
    ----------
    steps : int
        Optimizer steps.
    device : str
        "cpu", "cuda" or "cuda:N".
    precision : str
        "32-true", or "bf16-mixed" for autocast.
    lr : float
        Peak learning rate, after the warm-up.
    weight_decay : float
        Decoupled, as in AdamW.
    warm_up_steps : int
        Steps over which the rate rises linearly; a cosine to 0 follows.
    clip : float
        Largest norm of the gradient.
    average : float
        Decay of the exponential moving average of the weights.
    lr_scales : mapping of str to float
        Factor on the rate of parameters whose name starts with the key.
    devices : int
        Devices of this kind to train on at once, one process each.

    Raises
    ------
    ConfigError
        If steps or devices are out of range, or several devices are asked for by the
        number of one.
    """

    steps: int
    device: str = "cpu"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    lr: float = 3e-3
    weight_decay: float = 0.02
    warm_up_steps: int = 50
    clip: float = 5.0
    average: float = 0.99
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    devices: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps must be 0 or more, got {self.steps}")
        if self.devices < 1:
            raise ConfigError(f"devices must be 1 or more, got {self.devices}")
        kind, _, index = self.device.partition(":")
        if index and self.devices > 1:
            raise ConfigError(
                f"device {self.device!r} is one device, and {self.devices} are asked "
                f"for: give {kind!r}"
            )


def fit(
    module: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor | Mapping[str, Tensor]],
    options: LoopOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Path | None = None,
    every: int = 100,
    drawn_from: str = "",
    journal: Journal | None = None,
    validate: Callable[[nn.Module, int], None] | None = None,
    validate_every: int = 500,
) -> list[float]:
    """Fit a module in place; it ends with the averaged weights, in eval mode.

    Parameters
    ----------
    module : torch.nn.Module
        What is fitted.
    loss_of : callable
        (module, step) to a scalar loss, or to its parts by name, whose sum it is. It
        draws its own data, and calls the module that it is given, which holds the
        precision and the device.
    options : LoopOptions
        Steps, rates, devices.
    progress : callable, optional
        Told (done, total) after every step.
    checkpoint : Path, optional
        A file that is written on the way and removed at the end. If it is there, the
        fit goes on from it.
    every : int
        Steps per checkpoint.
    drawn_from : str
        What the losses draw from (data set, seed), in any words: a checkpoint that
        was made with other words is refused.
    journal : Journal, optional
        Gets the loss and its parts (means since the last row), the learning rate, the
        seconds over all runs, and the peak of memory: resident on the CPU, reserved
        on a GPU.
    validate : callable, optional
        Given (module, done) with the averaged weights, in eval mode, without gradient.
        Whatever it does to weights or random generators is undone.
    validate_every : int
        Steps per validation.

    Returns
    -------
    list of float
        Loss per step; the mean over the devices.

    Raises
    ------
    ConfigError
        If `every` or `validate_every` is below 1, the checkpoint belongs to another
        training, or the parts of the loss change.
    ExportError
        If checkpoint or journal cannot be written.

    Notes
    -----
    Draws no random number itself: seed what draws them. If the losses draw from
    (seed, step) alone, a fit that was interrupted and goes on gives the same bits as
    one that was not, on the same machine with the same number of threads; torch's
    generators are kept in the checkpoint, so that dropout repeats itself too.

    With more than one device the whole script is started once per device, as Fabric's
    strategy "ddp" does it, and what comes before and after `fit` runs in each. The
    losses draw with `rank_seed`, each calls its module once, and what writes files
    asks `rank` first. Gradients are averaged over the devices; journal, checkpoint,
    `validate` and `progress` belong to the first.
    """
    for name, steps in (("every", every), ("validate_every", validate_every)):
        if steps < 1:
            raise ConfigError(f"{name} must be 1 step or more, got {steps}")
    fabric = _start(options)
    if fabric.device.type == "cpu":
        keep_freed_memory(_LARGEST_BYTES)
    module.train()
    training = _begin(module, options)
    wrapped, prepared = fabric.setup(module, training.optimizer)
    training.averaged.to(fabric.device)
    facts = _facts(options, drawn_from)
    if checkpoint is not None:
        _resume(fabric, checkpoint, training, facts)
    first = fabric.is_global_zero
    if journal is not None and first:
        journal.rewind(training.done)
    began = time.perf_counter() - training.seconds
    for step in range(training.done, options.steps):
        factor = _set_rate(training, step, options)
        loss, parts = _summed(loss_of(wrapped, step))
        fabric.backward(loss)
        fabric.clip_gradients(wrapped, prepared, max_norm=options.clip)
        prepared.step()
        prepared.zero_grad()
        training.averaged.update_parameters(module)
        _note(training, _means(fabric, {"loss": loss} | parts))
        done = training.done = step + 1
        training.seconds = time.perf_counter() - began
        last = done == options.steps
        if journal is not None and first and (last or done % journal.every == 0):
            _write_row(journal, training, options.lr * factor, fabric.device)
        if validate is not None and done % validate_every == 0:
            if first:
                with _averaged_in(training, fabric.device):
                    validate(module, done)
            fabric.barrier()
        if checkpoint is not None and done % every == 0 and not last:
            random = _random_states(fabric)
            if first:
                save_checkpoint(checkpoint, training, facts, random)
        if progress is not None and first:
            progress(done, options.steps)
    _end(fabric, training)
    if checkpoint is not None and first:
        checkpoint.unlink(missing_ok=True)
    return training.history.get("loss", [])


def rank() -> int:
    """Number of this process among those that train together; 0 is the first.

    Known once `fit` has started the others; before that, and alone, it is 0.
    """
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if started else 0


def rank_seed(seed: Sequence[int]) -> list[int]:
    """Seed of what this process draws; to be asked for inside `loss_of`.

    Parameters
    ----------
    seed : sequence of int
        What the draw depends on, the step among it: (seed, step).

    Returns
    -------
    list of int
        The same in the first process, so that one device draws what it always drew;
        the number of the process is appended in the others.

    Examples
    --------
    >>> import numpy as np
    >>> int(np.random.default_rng(rank_seed([0, 7])).integers(1000))
    909
    """
    number = rank()
    return [*seed, number] if number else list(seed)


def _start(options: LoopOptions) -> Fabric:
    kind, _, index = options.device.partition(":")
    fabric = Fabric(
        accelerator=kind,
        devices=[int(index)] if index else options.devices,
        precision=options.precision,
        strategy="ddp" if options.devices > 1 else "auto",
    )
    if options.devices > 1:
        fabric.launch()
    return fabric


def _begin(module: nn.Module, options: LoopOptions) -> Training:
    optimizer = torch.optim.AdamW(
        _groups(module, options), weight_decay=options.weight_decay
    )
    averaged = AveragedModel(
        module,
        multi_avg_fn=get_ema_multi_avg_fn(options.average),  # type: ignore[no-untyped-call]  # torch leaves it untyped
        use_buffers=True,
    )
    return Training(module, averaged, optimizer)


def _groups(module: nn.Module, options: LoopOptions) -> list[dict[str, object]]:
    """One parameter group per factor on the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        scales = [v for key, v in options.lr_scales.items() if name.startswith(key)]
        groups.setdefault(scales[0] if scales else 1.0, []).append(parameter)
    return [{"params": ps, "peak": options.lr * scale} for scale, ps in groups.items()]


def _set_rate(training: Training, step: int, options: LoopOptions) -> float:
    """Set the rates of a step, which depend on nothing else; the factor on the peak."""
    factor = _rate(step, options)
    for group in training.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor


def _rate(step: int, options: LoopOptions) -> float:
    """Factor on the peak rate: linear warm-up, then a cosine to 0."""
    if step < options.warm_up_steps:
        return (step + 1) / options.warm_up_steps
    left = max(1, options.steps - options.warm_up_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - options.warm_up_steps) / left))


def _summed(loss: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and its parts if it came in parts."""
    if isinstance(loss, Tensor):
        return loss, {}
    taken = sorted(set(_COLUMNS) & set(loss))
    if taken or not loss:
        raise ConfigError(
            f"parts of the loss are named {', '.join(loss) or 'nothing'}; expected one "
            f"or more, none of them {', '.join(_COLUMNS)}"
        )
    return functools.reduce(operator.add, loss.values()), dict(loss)


def _means(fabric: Fabric, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Values over all devices, waited for once."""
    row = torch.stack([value.detach().double() for value in values.values()])
    if fabric.world_size > 1:
        # averages in place; Fabric's types cover collections of tensors as well
        fabric.all_reduce(row, reduce_op="mean")
    return dict(zip(values, row.tolist(), strict=True))


def _note(training: Training, values: Mapping[str, float]) -> None:
    history = training.history
    if history and list(history) != list(values):
        raise ConfigError(
            f"parts of the loss were {', '.join(history)}; in step {training.done} "
            f"they are {', '.join(values)}"
        )
    for name, value in values.items():
        history.setdefault(name, []).append(value)


def _write_row(
    journal: Journal, training: Training, lr: float, device: torch.device
) -> None:
    count = training.done % journal.every or journal.every
    means = {
        name: sum(values[-count:]) / len(values[-count:])
        for name, values in training.history.items()
    }
    memory = report_memory(device)
    peak = memory.process if device.type == "cpu" else memory.reserved
    extra = {"lr": lr, "seconds": round(training.seconds, 3), "peak_bytes": peak}
    journal.add(training.done, means | extra)


def _facts(options: LoopOptions, drawn_from: str) -> dict[str, object]:
    """What has to be the same for a checkpoint to fit, as JSON values."""
    facts = {one.name: getattr(options, one.name) for one in fields(options)}
    scales = dict(options.lr_scales)
    return facts | {"lr_scales": scales, "drawn_from": drawn_from}


def _resume(
    fabric: Fabric, file: Path, training: Training, facts: Mapping[str, object]
) -> None:
    """Go on from a checkpoint if there is one."""
    random = _random_states(fabric)
    if file.exists():
        random = load_checkpoint(file, training, facts, random)
        set_random_state(random[fabric.global_rank], fabric.device)
    fabric.barrier()  # nobody writes the file before all have read it


@contextmanager
def _averaged_in(training: Training, device: torch.device) -> Iterator[None]:
    """Lend the module the averaged weights; nothing of it is left afterwards."""
    module = training.module
    own = {name: t.clone() for name, t in tensors_of(module).items()}
    modes = {part: part.training for part in module.modules()}
    random = random_state(device)
    fill(module, tensors_of(training.averaged.module))
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        fill(module, own)
        for part, mode in modes.items():
            part.training = mode
        set_random_state(random, device)


def _end(fabric: Fabric, training: Training) -> None:
    """Give the module its average, that of the first process in all of them."""
    if training.done:
        averaged = tensors_of(training.averaged.module)
        if fabric.world_size > 1:
            # buffers are local: batch norm counts what its own process has seen
            for tensor in averaged.values():
                distributed.broadcast(tensor, 0)
        fill(training.module, averaged)
    training.module.eval()


def _random_states(fabric: Fabric) -> Tensor:
    """(ranks, n) uint8 states of the generators of all processes, on the CPU."""
    own = random_state(fabric.device)
    if fabric.world_size == 1:
        return own[None]
    states = [torch.empty_like(own) for _ in range(fabric.world_size)]
    gathered = [state.to(fabric.device) for state in states]
    distributed.all_gather(gathered, own.to(fabric.device))
    return torch.stack(gathered).cpu()
