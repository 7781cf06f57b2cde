"""The small U-Net of this package as a body: the default."""

from collections.abc import Sequence

from wsi_pipeline.models.unet import UNet


def plain_unet(
    inputs: int, classes: int, *, widths: Sequence[int] = (32, 64, 128)
) -> UNet:
    """A `UNet`, which takes images of any size without padding.

    Parameters
    ----------
    inputs, classes : int
        Channels in and out.
    widths : sequence of int
        Channels per scale, finest first.
    """
    return UNet(inputs, classes, tuple(widths))
