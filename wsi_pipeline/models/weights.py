"""Reads and writes nets as safetensors files, with every name and shape checked."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.foreign import check_ending, check_start
from wsi_pipeline.publishing import publish_bytes, sha256_file

# what checks of values are defined for; float8 and float4 have none
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


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
        If the file cannot be read, is no safetensors file, or holds numbers of a kind
        that no net here has.
    """
    with _reading(file):
        tensors = dict(load_file(file))
    odd = sorted({str(t.dtype) for t in tensors.values() if t.dtype not in _DTYPES})
    if odd:
        raise ModelError(f"{file}: holds tensors of {', '.join(odd)}")
    return tensors


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
    check_fit(module, file, prefix=prefix)
    wanted = _floats(module)
    tensors = {
        name.removeprefix(prefix): value
        for name, value in read_tensors(file).items()
        if name.startswith(prefix)
    }
    for name in sorted(wanted):
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ModelError(f"{file}: {prefix}{name} holds values that are not finite")
    module.load_state_dict(tensors, strict=False)


def check_fit(module: nn.Module, file: Path, *, prefix: str = "") -> None:
    """Compare names and shapes with those of a file, by its header alone.

    Parameters
    ----------
    module : torch.nn.Module
        May lie on torch's device "meta", where a net takes no memory.
    file, prefix
        See `load_state`.

    Raises
    ------
    ModelError
        If the file cannot be read, or a tensor is missing, unknown or of another shape.
    """
    wanted = _floats(module)
    with _reading(file), safe_open(file, "pt") as opened:
        found = {
            name.removeprefix(prefix): tuple(opened.get_slice(name).get_shape())
            for name in opened.keys()  # noqa: SIM118  # no mapping
            if name.startswith(prefix)
        }
    check_names(
        (prefix + name for name in wanted),
        (prefix + name for name in found),
        missing=f"{file}: misses",
        unknown=f"{file}: has unknown",
    )
    for name, shape in sorted(wanted.items()):
        if found[name] != shape:
            raise ModelError(
                f"{file}: {prefix}{name} has shape {found[name]}, the architecture in "
                f"the card needs {shape}"
            )


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


def _floats(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that files hold; counters of batch norm are left out."""
    state = module.state_dict()
    return {k: tuple(v.shape) for k, v in state.items() if v.is_floating_point()}


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    check_ending(file)
    check_start(file)
    try:
        yield
    # the last three: headers that the parser lets pass and torch does not
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{file}: no readable safetensors file ({error})") from error
