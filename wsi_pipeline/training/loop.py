"""Fits a module to a loss: AdamW, warm-up and cosine, clipping, moving average."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


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


def fit(
    module: nn.Module,
    loss_of: Callable[[nn.Module, int], Tensor],
    options: LoopOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Fit a module in place; it ends with the averaged weights, in eval mode.

    Parameters
    ----------
    module : torch.nn.Module
        What is fitted.
    loss_of : callable
        (module, step) to a scalar loss. It draws its own data, and calls the module
        that it is given, which holds the precision and the device.
    options : LoopOptions
        Steps, rates, device.
    progress : callable, optional
        Told (done, total) after every step.

    Returns
    -------
    list of float
        Loss per step.

    Notes
    -----
    Draws no random number itself: seed what draws them.
    """
    accelerator, _, index = options.device.partition(":")
    fabric = Fabric(
        accelerator=accelerator,
        devices=[int(index)] if index else 1,
        precision=options.precision,
    )
    module.train()
    optimizer = torch.optim.AdamW(
        _groups(module, options), weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, options)
    )
    averaged = AveragedModel(
        module,
        multi_avg_fn=get_ema_multi_avg_fn(options.average),  # type: ignore[no-untyped-call]  # torch leaves it untyped
        use_buffers=True,
    )
    wrapped, prepared = fabric.setup(module, optimizer)
    averaged.to(fabric.device)
    losses: list[float] = []
    for step in range(options.steps):
        loss = loss_of(wrapped, step)
        fabric.backward(loss)
        fabric.clip_gradients(wrapped, prepared, max_norm=options.clip)
        prepared.step()
        prepared.zero_grad()
        schedule.step()
        averaged.update_parameters(module)
        losses.append(float(loss.detach()))
        if progress is not None:
            progress(step + 1, options.steps)
    if options.steps:
        module.load_state_dict(averaged.module.state_dict())
    module.eval()
    return losses


def _groups(module: nn.Module, options: LoopOptions) -> list[dict[str, object]]:
    """One parameter group per factor on the learning rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        scales = [v for key, v in options.lr_scales.items() if name.startswith(key)]
        groups.setdefault(scales[0] if scales else 1.0, []).append(parameter)
    return [{"params": ps, "lr": options.lr * scale} for scale, ps in groups.items()]


def _rate(step: int, options: LoopOptions) -> float:
    """Factor on the peak rate: linear warm-up, then a cosine to 0."""
    if step < options.warm_up_steps:
        return (step + 1) / options.warm_up_steps
    left = max(1, options.steps - options.warm_up_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - options.warm_up_steps) / left))
