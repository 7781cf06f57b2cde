"""Refuses weights whose files could run code when they are loaded.

Looks at names and first bytes only: nothing is loaded to find out.
"""

from pathlib import Path

from wsi_pipeline.errors import ModelError

PICKLED = (
    ".bin", ".ckpt", ".jit", ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".tar", ".ts",
)  # fmt: skip
"""Endings of files that torch and pickle write."""

CONVERT = (
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    'save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" '
    "OLD NEW.safetensors"
)
"""What turns a state dict into a file that is loaded here."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_BRACE_AT = 8  # after the header's length; the format has the header begin with it


def check_ending(file: Path) -> None:
    """Refuse a file of weights by its name; it need not be there.

    Raises
    ------
    ModelError
        If it does not end in ``.safetensors``; says how a pickle is converted.
    """
    suffix = file.suffix.lower()
    if suffix in PICKLED:
        raise _pickled(file, f"a {suffix} file")
    if suffix != ".safetensors":
        raise ModelError(f"{file}: only .safetensors files are loaded")


def check_start(file: Path) -> None:
    """Refuse a file of weights that does not begin like a safetensors file.

    Raises
    ------
    ModelError
        If it does not, or is no regular file that can be read; says how a pickle is
        converted.
    """
    if not file.is_file():  # a pipe would never end
        raise ModelError(f"{file}: missing, or no regular file")
    try:
        with file.open("rb") as stream:
            head = stream.read(_BRACE_AT + 1)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    if head[_BRACE_AT:] == b"{":
        return
    if head.startswith((_ZIP, _PICKLE)):
        raise _pickled(file, "a renamed checkpoint of torch or pickle")
    raise ModelError(f"{file}: no readable safetensors file (it begins otherwise)")


def _pickled(file: Path, what: str) -> ModelError:
    return ModelError(
        f"{file}: {what}, which may run any code when it is loaded; only .safetensors "
        "files are. If you trust its maker, convert its state dict where it can do no "
        f"harm (no network, no data): {CONVERT}"
    )
