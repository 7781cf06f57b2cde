"""Frames, and how an arm is measured on them."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from tests.models import small_spec
from wsi_pipeline.metrics import mean_iou
from wsi_pipeline.models.flops import count_flops
from wsi_pipeline.models.sampling import class_shares, identity_grid
from wsi_pipeline.models.segmenter import SegmentNet
from wsi_pipeline.models.spec import SegmenterSpec
from wsi_pipeline.training.comparing import TRIMAP_PX, Frame, compare_frames
from wsi_pipeline.training.data import LabelledImages, RegionSource, Views
from wsi_pipeline.training.frames import framed, merged, on_canvas


def blobs(h: int, w: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth areas of classes 0, 1, 2."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    a, b, c, d = random.uniform(20, 45, 4)
    waves = np.sin(x / a) * np.cos(y / b) + 0.5 * np.sin((x + y) / c) * np.cos(x / d)
    out: NDArray[np.uint8] = np.digitize(waves, [-0.2, 0.4]).astype(np.uint8)
    return out


def images(count: int = 2, size: tuple[int, int] = (192, 256)) -> LabelledImages:
    labels = tuple(blobs(*size, seed) for seed in range(count))
    pixels = tuple(
        np.where(label == np.arange(3)[:, None, None], 220, 40).astype(np.uint8)
        for label in labels
    )
    names = tuple(map(str, range(count)))
    return LabelledImages(pixels, labels, names, names, 1.0)


class Brightest(nn.Module):
    """Class k where channel k is brightest: a segmenter that is always right."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels are logits."""
        return pixels


def knowing(strategy: str, nodes: tuple[int, int] = (24, 32)) -> SegmentNet:
    torch.manual_seed(0)
    net = SegmentNet(small_spec(nodes=nodes), strategy).eval()
    net.body = Brightest()
    for parameter in net.placer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def test_what_is_known_at_the_nodes_is_found_at_full_resolution() -> None:
    data = images()
    for strategy in ("uniform", "learned", "oracle", "separable"):
        scores = compare_frames(knowing(strategy), data)
        full, bound = (mean_iou(c.sum(axis=0)) for c in (scores.full, scores.bound))
        assert full > 0.85
        # a perfect net reaches its bound, but for the blur of level 1
        assert full == pytest.approx(bound, abs=0.02)
        assert mean_iou(scores.nodes.sum(axis=0)) > 0.97
        assert scores.full.sum() == 2 * 192 * 256
        assert scores.nodes.sum() == 2 * 24 * 32


def test_the_true_boundaries_raise_the_bound_at_equal_pixels() -> None:
    data = images()
    even, oracle = (
        mean_iou(compare_frames(knowing(s, (12, 16)), data).bound.sum(axis=0))
        for s in ("uniform", "oracle")
    )
    assert oracle > even + 0.005


def test_more_nodes_raise_the_bound() -> None:
    data = images(1)
    bounds = [
        mean_iou(compare_frames(knowing("uniform", n), data).bound.sum(axis=0))
        for n in ((6, 8), (12, 16), (24, 32), (48, 64))
    ]
    assert bounds == sorted(bounds)


def test_an_even_density_measures_as_the_uniform_arm() -> None:
    """Check 10 on frames: sampling, soft truth and inverse favour neither."""
    data = images(2)
    uniform, learned = knowing("uniform"), knowing("learned")
    nn.init.zeros_(learned.placer.net.net.head.weight)
    nn.init.zeros_(learned.placer.net.net.head.bias)
    a, b = (compare_frames(net, data) for net in (uniform, learned))
    for part in ("full", "nodes", "bound"):
        first, second = (
            mean_iou(getattr(scores, part).sum(axis=0)) for scores in (a, b)
        )
        assert first == pytest.approx(second, abs=0.002)
    assert 0.8 < mean_iou(a.full.sum(axis=0)) < 1


def test_accuracy_near_boundaries_is_counted_by_distance() -> None:
    data = images(1)
    scores = compare_frames(knowing("uniform"), data)
    label = data.labels[0]
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[:, :-1] |= label[:, 1:] != label[:, :-1]
    edge[1:] |= label[1:] != label[:-1]
    edge[:-1] |= label[1:] != label[:-1]
    distance = distance_transform_edt(~edge)
    assert scores.near[0, :, 1].tolist() == [
        int((distance < width).sum()) for width in TRIMAP_PX
    ]
    shares = scores.near[0, :, 0] / scores.near[0, :, 1]
    assert shares[0] < shares[-1] <= 1


def test_the_cost_counts_the_placing_too() -> None:
    data = images(1)
    torch.manual_seed(0)
    flops = {
        s: compare_frames(SegmentNet(small_spec(nodes=(24, 32)), s).eval(), data).flops
        for s in ("uniform", "learned")
    }
    assert flops["learned"] > flops["uniform"] > 0
    # the first convolution of the body alone: 3 x 3 x 3 x 8 multiply-adds per node
    assert flops["uniform"] > 2 * 27 * 8 * 24 * 32


def test_placing_is_less_than_a_tenth_of_the_cost_of_the_papers_net() -> None:
    """Check 13, at 64 x 64 nodes."""
    pytest.importorskip("segmentation_models_pytorch")

    def sample(grid: Tensor, taps: int) -> Tensor:
        return grid.new_zeros(len(grid), 3, *grid.shape[1:3])

    spec = SegmenterSpec(3, body="hrnet-w48")
    flops = [
        count_flops(SegmentNet(spec, name), sample, 1)
        for name in ("uniform", "learned")
    ]
    assert 1.001 < flops[1] / flops[0] < 1.1


def test_a_blurred_test_input_reaches_the_pixels_only() -> None:
    data = images(1)
    net = SegmentNet(small_spec(), "uniform").eval()
    plain, blurred = (Frame.of(net, data, 0, blur_px=sigma) for sigma in (0.0, 3.0))
    grid = identity_grid(24, 32)
    a, b = plain.sample(grid, 4), blurred.sample(grid, 4)
    assert float((a - b).abs().max()) > 0.05
    assert float((a.mean() - b.mean()).abs()) < 0.01
    np.testing.assert_array_equal(plain.truth, blurred.truth)


def test_training_and_measuring_see_the_same_pixels() -> None:
    """One sampler under both: an arm is not tested on sharper input than it knows."""
    data = images(1)
    batch = RegionSource(data, Views((192, 256), whole=True), 4).draw(
        1, np.random.default_rng(0), "cpu"
    )
    still = type(batch)(
        batch.levels,
        batch.labels,
        torch.tensor([[127.5, 95.5]]),
        torch.tensor([[[127.5, 0.0], [0.0, 95.5]]]),
    )
    net = SegmentNet(small_spec(nodes=(24, 32)), "uniform").eval()
    frame = Frame.of(net, data, 0)
    assert frame.first == 1
    grid = identity_grid(24, 32)
    torch.testing.assert_close(
        still.sample(grid, 4), frame.sample(grid, 4), atol=0.01, rtol=0
    )
    shares = class_shares(still.tap_labels(grid, 4), 3, 4)
    assert torch.equal(shares, frame.shares(grid))


def test_frames_have_one_size_and_keep_their_classes() -> None:
    data = framed(images(2, (100, 130)), (96, 128))
    assert [image.shape for image in data.images] == [(3, 96, 128)] * 2
    for image, label in zip(data.images, data.labels, strict=True):
        assert set(np.unique(label)) <= {0, 1, 2}
        assert (image.argmax(axis=0) == label).mean() > 0.97
    assert data.images[-1].shape == (3, 96, 128)
    assert len(data.labels[:1]) == 1
    with pytest.raises(IndexError):
        data.images[2]


def test_a_canvas_holds_the_image_once_on_glass() -> None:
    source = images(2)
    canvas = on_canvas(source, seed=3)
    again = on_canvas(source, seed=3)
    for index in range(2):
        image, label = canvas.images[index], canvas.labels[index]
        assert image.shape == (3, 384, 512)
        np.testing.assert_array_equal(image, again.images[index])
        assert (label > 0).sum() == (source.labels[index] > 0).sum()
        glass = (image > 230).all(axis=0)
        assert 0.7 < glass.mean() < 0.8
        assert label[glass].max() == 0
    other = on_canvas(source, seed=4).labels[0]
    assert not np.array_equal(canvas.labels[0], other)


def test_classes_can_be_merged() -> None:
    table = np.arange(256, dtype=np.uint8)
    table[2] = 1
    data = merged(images(1), table)
    assert set(np.unique(data.labels[0])) == {0, 1}


def test_whole_views_move_by_a_tenth_at_most() -> None:
    source = RegionSource(images(2), Views((192, 256), whole=True), 2)
    batch = source.draw(50, np.random.default_rng(0), "cpu")
    away = (batch.centre - torch.tensor([127.5, 95.5])).abs()
    assert (away <= torch.tensor([25.61, 19.21])).all()
    assert (away.amax(dim=0) > torch.tensor([20.0, 15.0])).all()
    zoom = (torch.linalg.det(batch.matrix).abs() / (127.5 * 95.5)).sqrt()
    assert 0.779 <= float(zoom.min()) < float(zoom.max()) <= 1.281


@pytest.mark.parametrize(
    ("strategy", "nodes", "first"),
    [("uniform", (12, 16), 1), ("uniform", (96, 128), 0), ("point", (12, 16), 0)],
)
def test_dense_nodes_and_points_read_the_base(
    strategy: str, nodes: tuple[int, int], first: int
) -> None:
    """What lies between pixels of level 1 is shown where nodes are close enough."""
    net = SegmentNet(small_spec(nodes=nodes), strategy).eval()
    frame = Frame.of(net, images(1), 0)
    assert frame.first == first
    assert frame.levels[0].shape[-2:] == (192 >> first, 256 >> first)


def test_a_node_per_pixel_is_the_image_itself() -> None:
    data = images(1, (48, 64))
    net = SegmentNet(small_spec(nodes=(48, 64)), "point").eval()
    frame = Frame.of(net, data, 0)
    seen = frame.sample(frame.segment().grid, 1)[0] * 255
    np.testing.assert_allclose(seen.numpy(), data.images[0], atol=0.02)
    scores = compare_frames(knowing("point", (48, 64)), data)
    assert mean_iou(scores.full.sum(axis=0)) == 1
