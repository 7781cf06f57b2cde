"""Counts the floating-point operations of a net."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(module: nn.Module, *inputs: Any) -> int:  # Any: the module's own
    """FLOPs of one forward pass in eval mode, 2 per multiply-add.

    Parameters
    ----------
    module : nn.Module
        Left as it was; each part gets its training flag back.
    *inputs
        What its forward takes.

    Returns
    -------
    int
        Convolutions, matrix products and attention. Norms, activations, resizing and
        grid sampling are not counted.

    Notes
    -----
    A module and inputs on the device "meta" are counted without computing anything
    and without memory for pixels.
    """
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*inputs)
    finally:
        for part, training in flags:
            part.training = training
    return int(counter.get_total_flops())
