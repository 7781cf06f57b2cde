"""Reads and writes nets as safetensors files, with every name and shape checked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.publishing import publish_bytes, sha256_file


def save_state(module: nn.Module, file: Path, *, half: bool = False) -> str:
    """Write a module's parameters and buffers.

    Parameters
    ----------
    module : torch.nn.Module
        Any module; integer counters of batch norm are left out.
    file : Path
        A ``.safetensors`` file, published whole.
    half : bool
        Store floats as float16: half the size, about 3 digits.

    Returns
    -------
    str
        sha256 of the file, hex.
    """
    tensors = {}
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            kept = value.detach().cpu().contiguous()
            tensors[name] = kept.half() if half else kept
    publish_bytes(file, save(tensors))
    return sha256_file(file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a ``.safetensors`` file, by name.

    Raises
    ------
    ModelError
        If the file cannot be read.
    """
    with _reading(file):
        return dict(load_file(file))


def tensor_names(file: Path) -> tuple[str, ...]:
    """Names of the tensors of a ``.safetensors`` file; reads its header only.

    Raises
    ------
    ModelError
        If the file cannot be read.
    """
    with _reading(file), safe_open(file, "pt") as tensors:
        return tuple(tensors.keys())


def load_state(module: nn.Module, file: Path, *, prefix: str = "") -> None:
    """Fill a module from a file that holds exactly its tensors.

    Parameters
    ----------
    module : torch.nn.Module
        Keeps its dtypes; half-precision files are widened.
    file : Path
        What `save_state` wrote.
    prefix : str
        Only names that start with it are read, the rest of the file is left alone.

    Raises
    ------
    ModelError
        If the file cannot be read, or a tensor is missing, unknown, of another shape
        or not finite.
    """
    tensors = {
        name.removeprefix(prefix): value
        for name, value in read_tensors(file).items()
        if name.startswith(prefix)
    }
    own = module.state_dict()
    wanted = {name for name, value in own.items() if value.is_floating_point()}
    check_names(
        (prefix + name for name in wanted),
        (prefix + name for name in tensors),
        missing=f"{file}: misses",
        unknown=f"{file}: has unknown",
    )
    for name in sorted(wanted):
        if tensors[name].shape != own[name].shape:
            raise ModelError(
                f"{file}: {prefix}{name} has shape {tuple(tensors[name].shape)}, "
                f"the architecture in the card needs {tuple(own[name].shape)}"
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ModelError(f"{file}: {prefix}{name} holds values that are not finite")
    module.load_state_dict(tensors, strict=False)


def check_names(
    wanted: Iterable[str], found: Iterable[str], *, missing: str, unknown: str
) -> None:
    """Refuse tensors that are not exactly those that are wanted.

    Parameters
    ----------
    missing, unknown : str
        How the refusal begins where names are missing, and where they are unknown.

    Raises
    ------
    ModelError
        If the names differ; says how many, and some of them.
    """
    own, theirs = set(wanted), set(found)
    for words, names in ((missing, own - theirs), (unknown, theirs - own)):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise ModelError(f"{words} {len(names)} tensors ({some}, ...)")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: no readable safetensors file ({error})") from error
