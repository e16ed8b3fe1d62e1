"""Maps that a loss trains through have the right derivatives, by finite differences; the others say that they have none."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.explanation import Explainer
from distilens.foundation.errors import UserError
from networks import Smooth

CLASSES = tuple("abcd")
TARGET = torch.tensor([1, 1, 2])
FROM_OUTPUT = [
    "gradcam:tap=features",
    "gradcam++:tap=features",
    "layercam:tap=features",
    "hirescam:tap=features",
    "cam",
    "eigencam:tap=features",
    "eigencam:tap=features,centre=false",
    "attention:tap=features",
    "attention:tap=features,power=3",
    "channel:tap=features,number=2",
    "gradient:channels=max",
    "gradient:channels=norm",
    "gradient:channels=sum",
    "gradient:channels=max,times_input=true",
]
FROM_MODEL = [
    *FROM_OUTPUT,
    "ig:steps=4",
    "ig:steps=4,channels=size",
    "ig:steps=4,baseline=blur,rule=trapezoid",
    "ig:steps=4,baseline=mean,rule=riemann",
    "expected_gradients:samples=5",
    "smoothgrad:samples=3,channels=max",
    "smoothgrad:samples=3,channels=sum",
]
UNTRAINABLE = ["occlusion", "rise", "random", "centre", "captum:Saliency", "captum:LayerGradCam,tap=features"]


class Statistics(nn.Module):
    """Batch norm and dropout, whose train mode gives other maps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.GELU(), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def smooth() -> Model:
    net = Model(Smooth(), CLASSES, size=(8, 8)).double().eval()
    net.tap("features")
    net.tap("last")
    net.tap("input")
    return net


def build(part: str) -> Explainer:
    explain = EXPLAINERS.build(part)
    explain.reference = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()
    return explain


def assert_derivative(loss: Callable[[], Tensor], weight: Tensor) -> None:
    """Along three directions, against central differences."""
    (gradient,) = torch.autograd.grad(loss(), weight)
    source = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(weight.shape, dtype=torch.float64, generator=source)
        found, step = [], 1e-6
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * step * direction)
            found.append(loss().item())
            with torch.no_grad():
                weight.sub_(sign * step * direction)
        expected = (found[0] - found[1]) / (2 * step)
        assert abs(expected) > 1e-4  # of a loss of about 1: it does depend on the weight
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def loss_of(maps: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A loss of about 1 that sees every pixel of every map differently."""
    first = maps().detach()
    assert first.abs().amax((1, 2)).min() > 0
    weights = torch.rand(first.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    scale = (weights * first.square()).sum()
    return lambda: (weights * maps().square()).sum() / scale


@pytest.mark.parametrize("weight", ["features.0.weight", "features.2.bias", "head.2.weight", "head.4.weight"])
@pytest.mark.parametrize("part", FROM_MODEL)
def test_the_derivative_of_maps_from_a_model(part, weight):
    net, explain = smooth(), build(part)
    if part.startswith(("eigencam", "attention", "channel")) and weight.startswith("head"):
        maps = explain.from_model(net, images(), TARGET)
        gradient = torch.autograd.grad(maps.sum(), net.network.head[2].weight, allow_unused=True)[0]
        assert gradient is None  # it does not look behind the tap
        return
    assert_derivative(loss_of(lambda: explain.from_model(net, images(), TARGET)), net.network.get_parameter(weight))


@pytest.mark.parametrize("weight", ["features.0.weight", "head.2.weight"])
@pytest.mark.parametrize("part", FROM_OUTPUT)
def test_the_derivative_of_maps_from_a_steps_own_output(part, weight):
    net, explain = smooth(), build(part)
    parameter = net.network.get_parameter(weight)
    assert torch.allclose(
        explain.from_output(net(images()), TARGET), explain.from_model(net, images(), TARGET), rtol=1e-10
    )
    if part.startswith(("eigencam", "attention", "channel")) and weight.startswith("head"):
        return
    assert_derivative(loss_of(lambda: explain.from_output(net(images()), TARGET)), parameter)
    apart = explain.from_output(net(images()), TARGET, create_graph=False)
    assert not apart.requires_grad
    assert torch.equal(apart, explain.from_output(net(images()), TARGET).detach())


@pytest.mark.parametrize("part", [part for part in FROM_MODEL if part != "cam"])  # whose head must be linear there
def test_maps_for_losses_are_those_for_evaluation(part):
    net, explain = smooth(), build(part)
    shown = explain(net, images(), TARGET).maps
    for maps in (explain.from_model(net, images(), TARGET), explain.from_model(net, images(), TARGET.tolist())):
        assert maps.requires_grad
        assert (maps.detach() - shown).abs().max() < 1e-6 * shown.abs().max()
    fixed = explain.from_model(net, images(), TARGET, create_graph=False)
    assert not fixed.requires_grad
    assert (fixed - shown).abs().max() < 1e-6 * shown.abs().max()
    own = explain.from_model(net, images())
    assert (own.detach() - explain(net, images()).maps).abs().max() < 1e-6 * shown.abs().max()


@pytest.mark.parametrize("part", [part for part in FROM_MODEL if part not in FROM_OUTPUT])
@pytest.mark.parametrize("training", [False, True])
def test_chunks_that_are_computed_again_have_the_gradient_of_one_chunk_that_is_kept(part, training):
    """In the backward pass too the forwards are in eval mode, whatever the model's own mode is by then."""
    torch.manual_seed(0)
    net = Model(Statistics(), CLASSES, size=(8, 8)).double()
    norm = net.network.features[1]
    norm.running_mean.uniform_(-0.2, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
    found = []
    for chunk, mode in ((10**6, False), (2, training), (5, training)):
        twin = copy.deepcopy(net).train(mode)
        explain = build(f"{part},chunk={chunk}")
        before = {name: value.clone() for name, value in twin.state_dict().items()}
        maps = explain.from_model(twin, images(), TARGET)
        twin.train(mode)
        torch.manual_seed(7)
        state = torch.get_rng_state()
        maps.square().sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training == mode for module in twin.modules())
        assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
        found.append({name: value.grad for name, value in twin.network.named_parameters()})
    for name in found[0]:
        if found[0][name] is None or not found[0][name].any():  # the head's bias moves no gradient
            assert name == "head.2.bias"
            continue
        for other in found[1:]:
            assert (other[name] - found[0][name]).abs().max() < 1e-9 * found[0][name].abs().max()
    # and train mode would have given others
    twin = copy.deepcopy(net).train()
    twin.tap("input")
    drawn = build("gradient:channels=sum").from_output(twin(images()), TARGET)
    twin.eval()
    still = build("gradient:channels=sum").from_output(twin(images()), TARGET)
    assert (drawn - still).abs().max() > 0.1 * still.abs().max()


def test_a_map_of_a_step_in_train_mode_is_that_steps_and_one_from_the_model_is_not():
    net = Model(Statistics(), CLASSES, size=(8, 8)).double().train()
    net.tap("features")
    output = net(images())
    own = build("gradcam:tap=features").from_output(output, TARGET)
    statistics = net.network.features[1].num_batches_tracked.clone()
    still = build("gradcam:tap=features").from_model(net, images(), TARGET)
    assert (own - still).abs().max() > 0.1 * still.abs().max()
    assert net.network.features[1].num_batches_tracked == statistics
    assert net.training


@pytest.mark.parametrize("part", ["ig:steps=4", "smoothgrad:samples=3,channels=sum", "gradient:channels=sum"])
def test_maps_have_a_derivative_with_respect_to_the_images_too(part):
    net, explain = smooth(), build(part)
    pixels = images().requires_grad_()
    assert_derivative(loss_of(lambda: explain.from_model(net, pixels, TARGET)), pixels)


@pytest.mark.parametrize("part", UNTRAINABLE)
def test_explainers_without_a_derivative_say_so(part):
    net, explain = smooth(), build(part)
    with pytest.raises(UserError, match="no derivative that a loss could use"):
        explain.from_output(net(images()), TARGET)
    with pytest.raises(UserError, match="no derivative that a loss could use"):
        explain.from_model(net, images(), TARGET)


@pytest.mark.parametrize("part", ["ig", "expected_gradients", "smoothgrad"])
def test_explainers_that_need_forwards_say_where(part):
    net = smooth()
    with pytest.raises(UserError, match=r"needs its own forward passes: use from_model\(model, images, target\)"):
        build(part).from_output(net(images()), TARGET)


def test_every_explainer_is_in_one_of_the_tests_above():
    """A new one is to be added to a list."""
    parts = {part.split(":")[0] for part in (*FROM_MODEL, *UNTRAINABLE)}
    assert parts == set(EXPLAINERS)
