"""Any model of the package timm as a patch encoder; alone in its file: optional."""

import re
from typing import Any

import timm

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.backbones import BackboneEncoder


def build(width: int, name: str, *, frozen: bool = False) -> BackboneEncoder:
    """Make an encoder of a timm model, with random weights; nothing is downloaded.

    Parameters
    ----------
    width : int
        Length D of an embedding.
    name : str
        As ``timm.list_models()`` gives it, maybe with a tag (``resnet18.a1_in1k``),
        which decides how pixels are normalised.
    frozen : bool
        See `BackboneEncoder`.

    Raises
    ------
    UnknownNameError
        If timm has no such model or tag.
    ModelError
        If it cannot be built.

    Notes
    -----
    Vision transformers made for one size of image take patches of others too: their
    position embeddings are interpolated, where timm can do that.
    """
    # names such as "hf-hub:..." would be resolved by a download
    if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) or not timm.is_model(name):
        raise UnknownNameError(
            f"unknown timm model {name!r}; `timm.list_models()` names those of version "
            f"{timm.__version__}"
        )
    try:
        body, config = _create(name)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"timm model {name!r} cannot be built: {error}") from error
    return BackboneEncoder(
        body,
        int(getattr(body, "head_hidden_size", body.num_features)),
        width,
        frozen=frozen,
        mean=config["mean"],
        std=config["std"],
    )


def build_frozen(width: int, name: str) -> BackboneEncoder:
    """As `build`, its batch norms frozen."""
    return build(width, name, frozen=True)


def _create(name: str) -> tuple[Any, dict[str, Any]]:  # Any: timm's own types
    """The model without a head, and what timm says of its input."""
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        try:
            body: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        except TypeError:  # this one takes its own size only
            body = timm.create_model(name, num_classes=0)
    else:
        body = timm.create_model(name, num_classes=0)
    return body, body.pretrained_cfg
