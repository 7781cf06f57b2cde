"""Weights that the official IPS code has trained: its names to our selector's."""

from collections.abc import Mapping

import torch
from torch import Tensor

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.official_encoders import OfficialEncoder
from wsi_pipeline.models.selector import SelectorNet, SelectorShape
from wsi_pipeline.models.weights import check_names

# ours to theirs; each name starts with one of these, heads aside
_PREFIXES = {
    "encoder.net.": "encoder.",
    "attention.queries": "transf.crs_attn.q",
    "attention.q.": "transf.crs_attn.q_w.",
    "attention.k.": "transf.crs_attn.k_w.",
    "attention.v.": "transf.crs_attn.v_w.",
    "attention.fc.": "transf.crs_attn.fc.",
    "attention.norm1.": "transf.crs_attn.layer_norm.",
    "attention.expand.": "transf.mlp.w_1.",
    "attention.shrink.": "transf.mlp.w_2.",
    "attention.norm2.": "transf.mlp.layer_norm.",
}


def from_official(
    state: Mapping[str, Tensor], shape: SelectorShape, tasks: tuple[str, ...]
) -> dict[str, Tensor]:
    """Rename the weights of the official code for a selector of ours.

    Parameters
    ----------
    state : mapping of str to tensor
        ``state_dict()`` of the official ``IPSNet``.
    shape : SelectorShape
        Its sizes (D, H, D_k = D_v, D_inner), and its encoder: "ips:resnet18" or
        "ips:resnet50" for images, "ips-features:F" for features of length F.
    tasks : tuple of str
        Names of its tasks in the order of their ``id``: task t reads token t.

    Returns
    -------
    dict of str to tensor
        All that ``SelectorNet(shape, tasks).load_state_dict`` takes.

    Raises
    ------
    ModelError
        If a tensor is missing, unknown or of another shape; if a task has several
        classes, since a task of ours is one yes or no; or if the shape's encoder is
        built otherwise or looks at places.

    Notes
    -----
    Not taken: nets of one input channel or of two ResNet stages (Megapixel MNIST). The
    official position encoding counts patches and is no weight, so that a state dict
    does not tell whether it was used: the predictions of such a net would be others.

    References
    ----------
    benbergner/ips, 4c17c1d: architecture/ips_net.py, architecture/transformer.py.
    """
    with torch.device("meta"):  # names and shapes only
        net = SelectorNet(shape, tasks)
    if not isinstance(net.encoder, OfficialEncoder):
        raise ModelError(
            "official weights need an encoder that is built alike: ips:resnet18, "
            f"ips:resnet50 or ips-features:LENGTH; got {shape.encoder!r}"
        )
    if shape.position:
        raise ModelError("official weights know no places on the slide")
    own = net.state_dict()
    prefixes = _PREFIXES | {
        f"outputs.{t}.": f"output_layers.{task}.0." for t, task in enumerate(tasks)
    }
    theirs = {name: _rename(name, prefixes) for name in own}
    check_names(
        theirs.values(),
        state,
        missing="official weights miss",
        unknown="official weights have unknown",
    )
    for name, official in theirs.items():
        got, wanted = tuple(state[official].shape), tuple(own[name].shape)
        if official.startswith("output_layers.") and got[0] > 1:
            raise ModelError(
                f"official weights: {official} is for {got[0]} classes; a task here is "
                "one yes or no"
            )
        if got != wanted:
            raise ModelError(
                f"official weights: {official} has shape {got}, the selector's shape "
                f"needs {wanted}"
            )
    return {name: state[official] for name, official in theirs.items()}


def _rename(name: str, prefixes: Mapping[str, str]) -> str:
    ours = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[ours] + name.removeprefix(ours)
