"""Explainers that ask for answers alone, controls that do not even ask, and each family on other people's models."""

import pytest
import torch
from torch import Tensor, nn

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.controls import CentreMap, RandomMap
from distilens.explain.occlusion import Occlusion
from distilens.explain.rise import RISE, shift_cells
from distilens.foundation import randomness
from distilens.models import build_model
from networks import transformer

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2])
FAMILIES = [
    "gradcam",
    "gradcam++",
    "layercam",
    "hirescam",
    "eigencam",
    "gradient",
    "smoothgrad:samples=2",
    "ig:steps=2",
    "expected_gradients:samples=2",
    "occlusion:window=16",
    "rise:masks=4",
    "captum:Saliency",
    "random",
    "centre",
]


def images(size: int = 16, count: int = 3) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


class Counting(nn.Module):
    """Integers: no gradient anywhere. The class is the third of the image that has most bright pixels."""

    def forward(self, x: Tensor) -> Tensor:
        bright = (x.mean(1) > 0).long()
        return torch.stack([third.sum((1, 2)) // 2 for third in bright.tensor_split(3, 2)], 1).float()


class Quiet(nn.Module):
    """A smooth model, seen through a wall that lets no graph through."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 196, 4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.from_numpy(self.layers(x).numpy(force=True))


def counting() -> Model:
    return Model(Counting(), CLASSES[:3], size=(12, 12)).eval()


def quiet() -> Model:
    return Model(Quiet(), CLASSES, size=(16, 16)).eval()


@pytest.mark.parametrize(
    "explain", [Occlusion(window=4, stride=2, baseline="zero"), RISE(masks=300, baseline="zero", grid=4)]
)
def test_a_model_without_any_gradient_is_explained(explain):
    """In the third where the bright stripe is."""
    net, pixels = counting(), torch.zeros(3, 3, 12, 12)
    for number in range(3):
        pixels[number, :, 4:8, 4 * number : 4 * number + 4] = 0.9
    found = explain(net, pixels)
    assert torch.equal(found.target, torch.arange(3))
    for number in range(3):
        thirds = torch.stack([third.mean() for third in found.maps[number].tensor_split(3, 1)])
        assert int(thirds.argmax()) == number
    assert (found.maps[0] - found.maps[2]).abs().max() > 0.1 * found.maps.abs().max()


@pytest.mark.parametrize("part", ["occlusion:window=5,stride=3", "rise:masks=21"])
def test_the_chunk_changes_nothing(part):
    net = quiet()
    whole = EXPLAINERS.build(f"{part},chunk=100000")(net, images(), TARGET).maps
    assert whole.abs().amax((1, 2)).min() > 0
    for chunk in (1, 2, 3, 7, 64, None):
        found = EXPLAINERS.build(part if chunk is None else f"{part},chunk={chunk}")(net, images(), TARGET).maps
        assert (found - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("part", ["occlusion:window=5,stride=3", "rise:masks=21", "ig:steps=4", "smoothgrad:samples=4"])
@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_no_forward_is_larger_than_the_chunk(part, chunk):
    net = Model(Quiet().layers, CLASSES, size=(16, 16)).eval()
    sizes = []
    net.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    EXPLAINERS.build(f"{part},chunk={chunk}")(net, images(), TARGET)
    assert max(sizes[1:]) <= chunk  # the first is the images themselves
    assert sum(sizes[1:]) >= 3 * 4


@pytest.mark.parametrize("baseline", ["mean", "zero", 0.3])
def test_what_hides_is_what_it_is_called(baseline):
    net, seen = quiet(), []
    net.entrance.register_forward_hook(lambda module, inputs, output: seen.append(output))
    level = {"mean": 0.5, "zero": 0.0}.get(baseline, baseline)
    Occlusion(window=4, stride=4, baseline=baseline, chunk=48)(net, images(), TARGET)  # all windows in one forward
    rows = torch.cat(seen[1:]).view(3, 16, 3, 16, 16)
    for number in range(16):
        top, left = number // 4 * 4, number % 4 * 4
        hidden = rows[:, number, :, top : top + 4, left : left + 4]
        assert torch.allclose(hidden, torch.tensor(level), atol=1e-6)
        assert (rows[:, number] != images()).flatten(1).any(1).all()
        rest = rows[:, number].clone()
        rest[..., top : top + 4, left : left + 4] = images()[..., top : top + 4, left : left + 4]
        assert torch.allclose(rest, images(), atol=1e-6)


def test_rises_map_is_the_sum_of_its_formula():
    """`1/(keep N) sum_n p_c(x behind m_n) m_n`, as a loop over the masks of the same seed."""
    net, explain = quiet(), RISE(masks=12, grid=3, keep=0.4, baseline=0.2, seed=3)
    found = explain(net, images(), TARGET).maps
    source = randomness.generator("rise", 3)
    cells, shifts = (torch.rand(12, 4, 4, generator=source) < 0.4).float(), torch.rand(12, 2, generator=source)
    expected = torch.zeros(3, 16, 16)
    for mask in shift_cells(cells, shifts, (16, 16)):
        probability = net.logits(images() * mask + 0.2 * (1 - mask)).softmax(1).gather(1, TARGET[:, None])
        expected += probability[:, :, None] * mask / (0.4 * 12)
    assert (found - expected).abs().max() < 1e-5 * expected.max()


@pytest.mark.parametrize(("size", "grid"), [((16, 16), 7), ((33, 20), 5), ((8, 8), 8), ((5, 7), 9)])
def test_rises_masks_are_enlarged_grids_at_random_places(size, grid):
    """Between 0 and 1, on the whole as bright as the share that is kept, smooth, and no two alike."""
    source = torch.Generator().manual_seed(0)
    cells = (torch.rand(3000, grid + 1, grid + 1, generator=source) < 0.3).float()
    masks = shift_cells(cells, torch.rand(3000, 2, generator=source), size)
    assert masks.shape == (3000, *size)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert (masks.mean(0) - 0.3).abs().max() < 0.06  # everywhere, the borders too
    assert masks.mean().item() == pytest.approx(0.3, abs=0.01)
    step = -(-size[0] // grid)
    assert masks.diff(dim=1).abs().max() <= 1 / step + 1e-5
    assert (masks[0] - masks[1]).abs().max() > 0.5


def test_more_masks_make_less_noise():
    net = quiet()
    spread = [
        torch.stack([RISE(masks=count, seed=seed)(net, images(count=1), 0).maps for seed in range(5)]).std(0).mean()
        for count in (25, 100, 400)
    ]
    for more, less in zip(spread[1:], spread, strict=False):
        assert 0.3 * less < more < 0.75 * less  # with the square root: half


def test_rise_draws_by_its_seed_alone():
    net = quiet()
    torch.manual_seed(1)
    first = RISE(masks=9)(net, images(), TARGET).maps
    torch.manual_seed(2)
    assert torch.equal(RISE(masks=9)(net, images(), TARGET).maps, first)
    assert not torch.equal(RISE(masks=9, seed=1)(net, images(), TARGET).maps, first)


@pytest.mark.parametrize("grid", [None, 5])
def test_a_random_map_is_its_images_and_its_seeds(grid):
    net, other = quiet(), build_model("resnet8", CLASSES, (16, 16)).eval()
    explain = RandomMap(grid=grid)
    maps = explain(net, images(), TARGET).maps
    assert maps.shape == (3, 16, 16)
    assert maps.min() >= 0
    assert maps.max() < 1
    assert torch.equal(explain(net, images(), TARGET).maps, maps)
    assert torch.equal(explain(other, images(), TARGET + 1).maps, maps)  # of the model and the class it knows nothing
    assert torch.equal(explain(net, images().flip(0), TARGET).maps.flip(0), maps)
    assert torch.equal(explain(net, images()[1:2], TARGET[1:2]).maps, maps[1:2])
    twins = torch.cat([images()[:1], images()[:1]])
    assert torch.equal(*explain(net, twins, 0).maps)
    for pair in (maps[:2], maps[1:], [maps[0], RandomMap(grid=grid, seed=1)(net, images(), TARGET).maps[0]]):
        correlation = torch.corrcoef(torch.stack([value.flatten() for value in pair]))[0, 1]
        assert correlation.abs() < (0.2 if grid is None else 0.6)
    mirrored = explain(net, images().flip(-1), TARGET).maps  # the same pixels at other places are another image
    assert not torch.equal(mirrored, maps)
    assert not torch.equal(mirrored.flip(-1), maps)
    moved = images().clone()
    moved[0, 0, 0, 0] += 1 / 255  # one level of one pixel: another image, and another map
    assert not torch.equal(explain(net, moved, TARGET).maps[0], maps[0])
    assert torch.equal(explain(net, moved, TARGET).maps[1:], maps[1:])


def test_random_maps_are_even_and_smooth_where_they_are_asked_to_be():
    net, pixels = counting(), images(24, 40)
    fine, coarse = RandomMap()(net, pixels, 0).maps, RandomMap(grid=4)(net, pixels, 0).maps
    assert fine.mean().item() == pytest.approx(0.5, abs=0.01)
    assert fine.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert coarse.diff(dim=2).abs().mean() < 0.3 * fine.diff(dim=2).abs().mean()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 15), (16, 24)])
def test_the_centre_is_symmetric_and_highest_in_the_middle(height, width):
    pixels = torch.rand(2, 3, height, width)
    maps = CentreMap()(counting(), pixels, 0).maps
    assert maps.shape == (2, height, width)
    for axis in (1, 2):
        assert torch.allclose(maps.flip(axis), maps, atol=1e-6)
    assert torch.equal(maps[0], maps[1])
    assert maps.min() > 0
    assert maps.max() <= 1
    row, column = divmod(int(maps[0].argmax()), width)
    assert abs(row - (height - 1) / 2) <= 0.5
    assert abs(column - (width - 1) / 2) <= 0.5
    half = width // 2
    assert (maps[0, height // 2, half:].diff() < 0).all()
    assert (CentreMap(spread=1.0)(counting(), pixels, 0).maps >= maps).all()
    if height == 15:  # the middle pixel is the centre
        assert maps[0, 7, 7] == 1
        side = torch.tensor(-((14 / 15) ** 2) / (2 * 0.5**2)).exp()  # the middle of the last column
        assert maps[0, 7, 14].item() == pytest.approx(side.item(), rel=1e-4)


def squeezed() -> Model:
    """torchvision's, with in-place ReLUs and concatenations, and a head of a convolution and a mean."""
    torch.manual_seed(0)
    return build_model("torchvision:squeezenet1_1", CLASSES, (32, 32)).eval()


@pytest.mark.parametrize("part", FAMILIES)
@pytest.mark.parametrize("name", ["transformer", "slim", "squeezed"])
def test_others_models_are_explained(name, part):
    net = {"transformer": transformer, "slim": slim, "squeezed": squeezed}[name]()
    explain = EXPLAINERS.build(part)
    explain.reference = images(32, 2)
    found = explain(net, images(32), TARGET)
    side = {"transformer": 4, "slim": 4, "squeezed": 3}[name] if explain.tap == "last" else 32
    assert found.maps.shape == (3, side, side)
    assert found.maps.isfinite().all()
    assert found.maps.any()
    assert found.logits.shape == (3, 4)


def slim() -> Model:
    """torchvision's transformer, small."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=4)
    nn.init.normal_(network.heads[-1].weight)  # zero at first
    return Model(network, CLASSES, size=(32, 32)).eval()


def test_a_transformers_weights_and_cam():
    """The heads of these read a token, not a mean: CAM says so, Grad-CAM does not need it."""
    for net in (transformer(), slim()):
        with pytest.raises(ValueError, match="use gradcam"):
            EXPLAINERS.build("cam")(net, images(32), TARGET)


def test_hirescam_is_nothing_where_a_layer_norm_alone_reads_the_patches():
    """What is normalised has no gradient along itself: the norm behind is the place to tap."""
    net, pixels = transformer().double(), images(32).double()
    before, behind = (
        EXPLAINERS.build(f"hirescam:tap=vit.layers.{tap}")(net, pixels, TARGET).maps
        for tap in ("1", "2.layernorm_before")
    )
    assert before.max() < 1e-6 * behind.max()
    assert behind.max() > 1e-3
