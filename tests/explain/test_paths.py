"""One map by every way that leads to it: cut trunk, whole graph, closed form; one tap or several; in place or not."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.cam import CAM
from distilens.explain.gradcam import GradCAM
from distilens.explain.gradient import Gradient
from distilens.foundation.errors import UserError
from networks import convolutional, settled

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2, 3])
FAMILY = ["gradcam", "gradcam++", "layercam", "hirescam"]


def images(size: int = 16, count: int = 4) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def model(name: str = "resnet8") -> Model:
    return convolutional(name, (16, 16))


class Branches(nn.Module):
    """A trunk, two branches beside each other, a module that is called twice, and containers within containers."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace))
        self.left = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace))
        self.right = nn.Sequential(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)), nn.ReLU(inplace))
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace)
        self.head = nn.Linear(6, 4)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        left, right = self.left(x), self.right(x)
        x = self.twice(self.relu(self.twice(left + right)))
        if self.inplace:
            x += right
        else:
            x = x + right
        return self.head(self.relu(x).mean((2, 3)))


TAPS = ["trunk", "trunk.1", "left", "left.0", "right", "right.0", "right.0.1", "twice"]


def branches(inplace: bool = False) -> Model:
    return settled(Model(Branches(inplace), CLASSES, size=(16, 16)))


def twice(network: Branches, pixels: Tensor) -> Tensor:
    """Grad-CAM of the second call of the module that is called twice, by hand."""
    x = network.trunk(pixels)
    left, right = network.left(x), network.right(x)
    feature = network.twice(network.relu(network.twice(left + right)))
    logits = network.head(network.relu(feature + right).mean((2, 3)))
    (gradient,) = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), feature)
    return (feature * gradient.mean((2, 3), keepdim=True)).sum(1).relu().detach()


def close(ours: Tensor, theirs: Tensor, within: float = 1e-6) -> bool:
    assert theirs.abs().max() > 0
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= within * theirs.abs().max())


def counted(net: Model) -> list[int]:
    calls = []
    net.network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    return calls


@pytest.mark.parametrize(
    ("name", "taps"),
    [("resnet8", ["layer1", "layer2.0.bn1", "layer3", "input"]), ("vgg8", ["layer2", "layer5"]), ("branches", TAPS)],
)
@pytest.mark.parametrize("part", [*FAMILY, "eigencam"])
def test_the_cut_trunk_the_whole_graph_and_a_forward_of_its_own_give_one_map(name, taps, part):
    net = branches() if name == "branches" else model(name)
    for tap in taps:
        net.tap(tap)
    output = net(images())
    for tap in taps:
        explain = EXPLAINERS.build(f"{part}:tap={tap}")
        fast = explain(net, images(), TARGET).maps
        assert close(explain.from_output(output, TARGET).detach(), fast)
        assert close(explain.from_model(net, images(), TARGET).detach(), fast)


def test_for_a_pooled_linear_head_all_are_the_closed_form():
    net = model()
    net.tap("last")
    closed = CAM()(net, images(), TARGET).maps
    weight, feature = net.network.fc.weight[TARGET], net(images()).features["last"]
    assert close(closed, torch.einsum("bchw,bc->bhw", feature, weight).detach())
    assert close(CAM().from_output(net(images()), TARGET).detach(), closed)
    assert close(CAM().from_model(net, images(), TARGET).detach(), closed)
    assert close(GradCAM()(net, images(), TARGET).maps * 16, closed.relu())
    assert close(GradCAM().from_output(net(images()), TARGET).detach() * 16, closed.relu())


@pytest.mark.parametrize("part", FAMILY)
@pytest.mark.parametrize("frozen", [False, True])
def test_several_taps_share_one_forward_and_equal_single_calls_in_any_order(part, frozen):
    net = branches().requires_grad_(not frozen)
    assert net.last_tap
    explain = EXPLAINERS.build(part)
    single = {tap: EXPLAINERS.build(f"{part}:tap={tap}")(net, images(), TARGET).maps for tap in TAPS}
    assert all(maps.any() for maps in single.values())
    for first, second in itertools.combinations(TAPS, 2):  # so that each is tried as the other's cut
        for order in ((first, second), (second, first)):
            found = explain.at(order, net, images(), TARGET)
            assert list(found) == list(order)
            assert all(close(found[tap].maps, single[tap]) for tap in order)
    for order in (TAPS, TAPS[::-1], [*TAPS[3:], *TAPS[:3]]):
        calls = counted(net)
        found = explain.at(order, net, images(), TARGET)
        assert calls == [4]
        assert all(close(found[tap].maps, single[tap]) for tap in TAPS)
        assert all(torch.equal(one.target, TARGET) for one in found.values())
        with torch.no_grad():
            assert torch.allclose(found["trunk"].logits, net.logits(images()), atol=1e-6)


def test_without_a_target_several_taps_explain_the_same_class():
    net = branches()
    found = GradCAM().at(["trunk", "last"], net, images())
    assert all(torch.equal(one.target, net.logits(images()).argmax(1)) for one in found.values())
    assert set(found) == {"trunk", "last"}


@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_that_is_called_twice_is_read_at_its_last_call(inplace):
    net = branches(inplace)
    expected = twice(branches().network, net.prepare(images()))
    assert close(GradCAM(tap="twice")(net, images(), TARGET).maps, expected, 1e-5)
    net.tap("twice")
    assert close(GradCAM(tap="twice").from_output(net(images()), TARGET).detach(), expected, 1e-5)


@pytest.mark.parametrize("part", [*FAMILY, "eigencam", "gradient", "ig:steps=4", "smoothgrad:samples=2"])
def test_a_network_that_works_in_place_has_the_maps_of_one_that_does_not(part):
    still, moving = branches(), branches(inplace=True)
    taps = TAPS if part in (*FAMILY, "eigencam") else [None]
    for tap in taps:
        explain = EXPLAINERS.build(part if tap is None else f"{part}:tap={tap}")
        expected = explain(still, images(), TARGET).maps
        assert close(explain(moving, images(), TARGET).maps, expected)
        assert close(explain.from_model(moving, images(), TARGET).detach(), expected)
        if tap is not None:
            moving.tap(tap)
            assert close(explain.from_output(moving(images()), TARGET).detach(), expected)
    if part in FAMILY:
        together = EXPLAINERS.build(part).at(TAPS, moving, images(), TARGET)
        single = EXPLAINERS.build(part).at(TAPS, still, images(), TARGET)
        assert all(close(together[tap].maps, single[tap].maps) for tap in TAPS)


def test_tapping_changes_nothing_of_a_network_that_works_in_place():
    net = branches(inplace=True)
    before = net.logits(images())
    for tap in TAPS:
        net.tap(tap)
    output = net(images())
    assert torch.equal(output.logits, before)
    apart = branches()
    for tap in TAPS:
        apart.tap(tap)
    plain = apart(images()).features
    assert all(close(output.features[tap], plain[tap]) for tap in TAPS)


class Reused(nn.Module):
    """A convolution that is called twice; what it returned first is changed in place, what it returned last is not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(x)
        x += 1
        return self.head((self.twice(x) * 2).sigmoid().mean((2, 3)))


def test_a_module_whose_first_output_alone_is_overwritten():
    net = Model(Reused(), CLASSES, size=(16, 16)).eval()
    found = GradCAM(tap="twice")(net, images(), TARGET).maps
    net.tap("twice")
    assert close(found, GradCAM(tap="twice").from_output(net(images()), TARGET).detach())


class EndsShared(nn.Module):
    """The module that returns the last feature map was called before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.relu = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.two(self.relu(self.one(x)))).mean((2, 3)))


def test_a_network_that_works_in_place_on_its_input():
    torch.manual_seed(0)
    layers = nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)
    net, pixels = Model(nn.Sequential(*layers), CLASSES, size=(16, 16)).eval(), images()
    for part in ("gradient", "gradcam:tap=1"):
        assert EXPLAINERS.build(part)(net, pixels, TARGET).maps.any()
        assert torch.equal(pixels, images())


def test_the_last_feature_map_may_be_that_of_a_module_called_before():
    net = Model(EndsShared(), CLASSES, size=(16, 16)).eval()
    assert net.last_tap == "relu"
    assert CAM()(net, images(), TARGET).maps.any()


@pytest.mark.parametrize("part", ["gradcam", "captum:LayerGradCam,tap=last"])
def test_the_last_tap_is_found_in_inference_mode_too(part):
    net = model()
    with torch.inference_mode():
        assert EXPLAINERS.build(part)(net, images(), TARGET).maps.any()


@pytest.mark.parametrize("part", ["gradcam", "cam", "eigencam", "captum:LayerGradCam,tap=last"])
def test_the_last_tap_is_found_under_no_grad_too(part):
    net = model()
    with torch.no_grad():
        assert EXPLAINERS.build(part)(net, images(), TARGET).maps.any()


def test_a_feature_with_as_many_channels_as_rows_is_not_turned():
    net = convolutional(size=(16, 32))
    assert GradCAM(tap="layer1")(net, torch.rand(4, 3, 16, 32), TARGET).maps.shape == (4, 16, 32)


def test_the_tap_of_the_images():
    net, pixels = branches(), images()
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net.logits(leaf).gather(1, TARGET[:, None]).sum(), leaf)
    found = GradCAM(tap="input")(net, pixels, TARGET).maps
    assert close(found, (pixels * gradient.mean((2, 3), keepdim=True)).sum(1).relu())
    assert close(Gradient()(net, pixels, TARGET).maps, gradient.abs().amax(1))
    with pytest.raises(UserError, match=r"call model.tap\('input'\) first"):
        Gradient().from_output(net(pixels), TARGET)
    net.tap("input")
    output = net(pixels)
    assert torch.equal(output.features["input"], pixels)
    assert close(Gradient().from_output(output, TARGET).detach(), gradient.abs().amax(1))
    both = GradCAM().at(["input", "trunk"], net, pixels, TARGET)
    assert close(both["input"].maps, found)
    with torch.no_grad():
        assert not net(pixels).features["input"].requires_grad


def test_images_of_another_size_have_gradients_of_their_own_pixels():
    net, pixels = branches(), images(24)
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net.logits(leaf).gather(1, TARGET[:, None]).sum(), leaf)
    found = Gradient(channels="norm")(net, pixels, TARGET).maps
    assert found.shape == (4, 24, 24)
    assert close(found, gradient.norm(dim=1), 1e-5)
