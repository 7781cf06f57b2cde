"""Fills a body's backbone from a local file of pretrained weights."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.weights import read_tensors

_log = logging.getLogger(__name__)


def load_pretrained(body: nn.Module, file: Path) -> tuple[str, ...]:
    """Load pretrained weights, strictly apart from the body's heads.

    The file may hold the whole body or a part of it, such as an encoder; where its
    names belong in the body is found by the names themselves. Every float tensor of
    the body outside its heads must be in the file with the same shape. Tensors of the
    heads are taken if they are there and fit. The rest of the file is left alone,
    logged and returned.

    Parameters
    ----------
    body : nn.Module
        Its attribute ``head_prefixes`` holds those of its heads' tensors; without it
        they are ``("head.",)``. Keeps its dtypes.
    file : Path
        A ``.safetensors`` file; nothing is downloaded.

    Returns
    -------
    tuple of str
        Names in the file that were not used, sorted.

    Raises
    ------
    ModelError
        If the file cannot be read, if no tensor of it fits, or if a tensor outside
        the heads is missing, of another shape or not finite.
    """
    stored = _floats(read_tensors(file))
    own = _floats(body.state_dict())
    prefix = _place(file, own, stored)
    used = {
        prefix + name: value
        for name, value in stored.items()
        if prefix + name in own and value.shape == own[prefix + name].shape
    }
    heads = tuple(getattr(body, "head_prefixes", ("head.",)))
    for name in sorted(name for name in own if not name.startswith(heads)):
        _check(file, name, own[name], stored.get(name.removeprefix(prefix)))
    for name, value in used.items():
        _check(file, name, own[name], value)
    body.load_state_dict(used, strict=False)
    unused = tuple(sorted(name for name in stored if prefix + name not in used))
    fresh = sorted(set(own) - set(used))
    _log.info(
        "%s: %d tensors loaded, %d in the file not used (%s), %d of the heads fresh "
        "(%s)",
        *(file, len(used), len(unused), _some(unused), len(fresh), _some(fresh)),
    )
    return unused


def _floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without batch norm's integer counters."""
    return {name: v for name, v in tensors.items() if v.is_floating_point()}


def _place(file: Path, own: dict[str, Tensor], stored: dict[str, Tensor]) -> str:
    """Prefix of the body's names under which most of the file's names are found."""
    found: Counter[str] = Counter()
    for name in own:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in stored:
                found[".".join((*parts[:start], ""))] += 1
    if not found:
        raise ModelError(
            f"{file}: fits nothing in the body; the file has {_some(stored)}, the body "
            f"has {_some(own)}"
        )
    return max(found, key=lambda prefix: (found[prefix], -len(prefix)))


def _check(file: Path, name: str, own: Tensor, stored: Tensor | None) -> None:
    if stored is None:
        raise ModelError(f"{file}: misses {name}, which is no part of the heads")
    if stored.shape != own.shape:
        raise ModelError(
            f"{file}: {name} has shape {tuple(stored.shape)}, the body needs "
            f"{tuple(own.shape)}"
        )
    if not bool(torch.isfinite(stored).all()):
        raise ModelError(f"{file}: {name} holds values that are not finite")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "") or "none"
