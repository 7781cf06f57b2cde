"""Pre-extracted features to embeddings: the encoder of slides without pixels."""

from torch import Tensor, nn

from wsi_pipeline.errors import ModelError, UnknownNameError
from wsi_pipeline.models.encoders import as_tensor


class FeatureEncoder(nn.Module):
    """Layer norm, a linear layer, layer norm, ReLU: (n, F) features to (n, D).

    Parameters
    ----------
    width : int
        Length D of an embedding.
    inputs : str
        Length F of a feature, as the encoder's name states it ("features:1024").

    Raises
    ------
    UnknownNameError
        If F is no whole number above 0.

    Notes
    -----
    Published with batch norm where the second layer norm stands. Its running
    statistics would be those of the selected patches, while selection scores all of
    them, and in training a patch would depend on its neighbours in the batch. Layer
    norm, unlike group norm, asks nothing of D, and features have no channels to group.

    References
    ----------
    Bergner et al., ICLR 2023, official code (benbergner/ips, 4c17c1d), the projector
    for CAMELYON16.
    """

    def __init__(self, width: int, inputs: str) -> None:
        super().__init__()
        if not inputs.isascii() or not inputs.isdigit() or int(inputs) < 1:
            raise UnknownNameError(
                f"unknown encoder 'features:{inputs}': expected the length of a "
                "feature, such as features:1024"
            )
        self.inputs = int(inputs)
        self.net = nn.Sequential(
            nn.LayerNorm(self.inputs, elementwise_affine=False),
            nn.Linear(self.inputs, width),
            nn.LayerNorm(width),
            nn.ReLU(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Embed features: (n, F) floats to (n, D).

        Raises
        ------
        ModelError
            If what comes is no such matrix.
        """
        if features.ndim != 2 or features.shape[1] != self.inputs:
            raise ModelError(
                f"this selector reads features of length {self.inputs}, got an array "
                f"of shape {tuple(features.shape)}"
            )
        weight = next(self.net.parameters())
        return as_tensor(self.net(features.to(weight.dtype)))
