"""Turns another package's backbone into a patch encoder that keeps patches apart."""

from collections.abc import Iterator, Sequence
from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsi_pipeline.models.encoders import PatchInput, as_tensor

_GROUPS = 32  # at most; Wu and He, ECCV 2018, found fewer worse and more no better


class BackboneEncoder(nn.Module):
    """A backbone with a projection to D, whose batch norms know no batch.

    Parameters
    ----------
    body : nn.Module
        Maps (n, 3, p, p) float pixels to (n, features).
    features, width : int
        Length of what the body puts out, and D.
    frozen : bool
        What becomes of the body's batch norms: they keep the statistics that they were
        loaded with, in training too, or they are replaced by group norms.
    mean, std : sequence of float, optional
        Of the pixels that the body was made for, per channel; ImageNet's.

    Notes
    -----
    Statistics of a batch would be those of the M selected patches, and running ones
    would drift to them: the other patches, which only the selection pass sees, would
    be scored out of distribution. Pretrained statistics come with pretrained weights,
    so they are kept; a fresh net has none, so it gets group norms, which need none.

    References
    ----------
    Bergner et al., ICLR 2023, re-encode the selected patches under batch statistics;
    Wu and He, "Group Normalization", ECCV 2018.
    """

    def __init__(
        self,
        body: nn.Module,
        features: int,
        width: int,
        *,
        frozen: bool,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.input = PatchInput(mean, std)
        self.body = body
        if not frozen:
            replace_batch_norms(body)
        self.project = nn.Linear(features, width)
        self.norm = nn.LayerNorm(width)

    def train(self, mode: bool = True) -> Self:
        """Switch as any module, but for batch norms: they stay in eval mode."""
        super().train(mode)
        for part in _batch_norms(self):
            part.eval()
        return self

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches: (n, 3, p, p) to (n, D)."""
        features = self.body(self.input(patches))  # (n, features)
        return as_tensor(self.norm(self.project(features)))


def replace_batch_norms(body: nn.Module) -> None:
    """Put a group norm in the place of every batch norm, with its scale and shift."""
    for parent in list(body.modules()):
        for name, part in parent.named_children():
            if isinstance(part, _BatchNorm):
                setattr(parent, name, _group_norm(part))


def _batch_norms(body: nn.Module) -> Iterator[nn.Module]:
    return (part for part in body.modules() if isinstance(part, _BatchNorm))


def _group_norm(part: _BatchNorm) -> nn.Module:
    channels = part.num_features
    # two channels in a group at least: alone on a 1 x 1 feature, one would be constant
    most = min(_GROUPS, channels // 2)
    groups = next((g for g in range(most, 0, -1) if channels % g == 0), 1)
    norm = nn.GroupNorm(groups, channels, eps=part.eps, affine=part.affine)
    if part.affine:
        norm.load_state_dict({"weight": part.weight, "bias": part.bias})
    # timm's norms bring their activation along
    rest = [getattr(part, name, None) for name in ("drop", "act")]
    extra = [one for one in rest if isinstance(one, nn.Module)]
    return nn.Sequential(norm, *extra) if extra else norm
