"""Turns a name and options into a segmentation net, a "body".

A body maps (n, inputs, h, w) float pixels to (n, classes, h, w) float logits of the
same h and w, for any h and w of 16 or more.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.bodies.pretrained import load_pretrained
from wsi_pipeline.models.bodies.table import BodyTable

BODIES = BodyTable(
    "body",
    {
        "unet": "wsi_pipeline.models.bodies.plain:plain_unet",
        "smp-unet": "wsi_pipeline.models.bodies.smp:smp_unet",
        "pspnet": "wsi_pipeline.models.bodies.smp:pspnet",
        "deeplabv3plus": "wsi_pipeline.models.bodies.smp:deeplabv3plus",
        "fpn": "wsi_pipeline.models.bodies.smp:fpn",
        "segformer": "wsi_pipeline.models.bodies.smp:segformer",
        "hrnet-w48": "wsi_pipeline.models.bodies.hrnet:hrnet",
    },
)
"""Bodies by name; installed packages add rows through `table.GROUP`.

A row is a callable ``(inputs: int, classes: int, *, option=default, ...)`` that
returns the body with fresh weights. Its further parameters are the body's options.
A body may have an attribute ``head_prefixes``, of the names of tensors that pretrained
weights need not hold; without it these are ``("head.",)``.
"""


def build_body(
    name: str,
    *,
    inputs: int = 3,
    classes: int,
    options: Mapping[str, Any] | None = None,  # Any: JSON, as stored in a card
    weights: Path | None = None,
) -> nn.Module:
    """Make a body; nothing is ever downloaded.

    Parameters
    ----------
    name : str
        A row of `BODIES`.
    inputs, classes : int
        Channels in and out, 1 or more.
    options : mapping of str to JSON values, optional
        See `body_options`; those left out keep their defaults.
    weights : Path, optional
        A local ``.safetensors`` file of pretrained weights; see `load_pretrained`.

    Returns
    -------
    nn.Module
        Maps (n, inputs, h, w) float to (n, classes, h, w) logits, in training mode.

    Raises
    ------
    UnknownNameError
        If there is no such row.
    ModelError
        If the row is broken or its optional packages are missing, if an option is
        unknown or has a value that does not work, or if the weights do not fit.

    Notes
    -----
    Batch norm in training mode needs more than one value per channel: in training,
    feed small images in batches of 2 or more.
    """
    for word, count in (("inputs", inputs), ("classes", classes)):
        if count < 1:
            raise ModelError(f"body {name!r} has {count} {word}, expected 1 or more")
    builder = BODIES.load(name)
    chosen = dict(options or {})
    _check_options(name, builder, chosen)
    try:
        with torch.inference_mode(mode=False):  # a body can always be trained
            body = builder(inputs, classes, **chosen)
    except ModelError:
        raise
    except Exception as error:  # values come from cards, builders from anywhere
        raise ModelError(
            f"body {name!r} cannot be built with {chosen}: {error}"
        ) from error
    if not isinstance(body, nn.Module):
        raise ModelError(
            f"body {name!r} is a {type(body).__name__}, expected a torch.nn.Module"
        )
    if weights is not None:
        load_pretrained(body, weights)
    return body


def body_options(name: str) -> dict[str, Any]:  # Any: JSON
    """Options that a body takes, with their defaults.

    Raises
    ------
    UnknownNameError, ModelError
        As `build_body`.
    """
    return {option.name: option.default for option in _options(BODIES.load(name))}


def _options(builder: Callable[..., nn.Module]) -> list[inspect.Parameter]:
    """A builder's parameters after inputs and classes."""
    return list(inspect.signature(builder).parameters.values())[2:]


def _check_options(
    name: str, builder: Callable[..., nn.Module], chosen: dict[str, Any]
) -> None:
    known = _options(builder)
    if not any(option.kind is option.VAR_KEYWORD for option in known):
        names = [option.name for option in known]
        for option in chosen:
            if option not in names:
                raise ModelError(
                    f"body {name!r} takes no option {option!r}; it takes: "
                    f"{', '.join(names) or 'none'}"
                )
    try:
        orjson.dumps(chosen)
    except TypeError as error:
        raise ModelError(
            f"body {name!r}: options must be JSON to fit in a card ({error})"
        ) from error
