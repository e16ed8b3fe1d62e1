"""Maps that are known: numbers of other people's tests, closed forms, and what must add up."""

import pytest
import torch
from captum.testing.helpers.basic_models import BasicModel2, BasicModel3, BasicModel_ConvNet_One_Conv
from torch import Tensor, nn

from distilens.core import Model, Output
from distilens.data import load
from distilens.explain import EXPLAINERS, build_explainer
from distilens.explain.cam import CAM
from distilens.explain.eigencam import EigenCAM
from distilens.explain.expected_gradients import ExpectedGradients
from distilens.explain.gradcam import GradCAM
from distilens.explain.gradcam_plus_plus import GradCAMPlusPlus
from distilens.explain.gradient import Gradient
from distilens.explain.hirescam import HiResCAM
from distilens.explain.integrated_gradients import IntegratedGradients
from distilens.explain.layercam import LayerCAM
from distilens.explain.occlusion import Occlusion
from distilens.explain.rise import RISE
from distilens.explain.smoothgrad import SmoothGrad
from distilens.foundation.errors import UserError
from networks import convolutional

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2, 3])
RULES = ["gauss", "trapezoid", "riemann"]
BASELINES = ["zero", "mean", "blur", 0.4]


def images(size: int = 16, count: int = 4) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def model() -> Model:
    return convolutional(size=(16, 16))


class Smooth(nn.Module):
    """All derivatives, and no symmetry between places."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), nn.Conv2d(6, 5, 3), nn.Tanh())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(45, 8), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def smooth() -> Model:
    return Model(Smooth(), CLASSES, size=(10, 10)).double().eval()


def linear(size: int = 6) -> tuple[Model, Tensor]:
    """A linear model, and its gradient with respect to the pixels, by class."""
    torch.manual_seed(3)
    net = Model(nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 4)), CLASSES, size=(size, size)).eval()
    return net, net.network[1].weight.detach().view(4, 3, size, size) / net.std


def same(ours: Tensor, theirs: Tensor, within: float = 1e-5) -> bool:
    assert theirs.abs().max() > 0
    return bool((ours - theirs).abs().max() <= within * theirs.abs().max())


@pytest.mark.parametrize("inplace", [False, True])
def test_gradcam_gives_captums_known_values(inplace):
    net = Model(BasicModel_ConvNet_One_Conv(inplace), CLASSES, size=(4, 4), mean=(0.0,), std=(1.0,)).eval()
    pixels = torch.arange(16.0).view(1, 1, 4, 4)
    net._overwritten = {"conv1": inplace, "relu1": False}  # the example image has three channels, this network one
    assert torch.allclose(GradCAM(tap="conv1")(net, pixels, 0).maps[0], torch.tensor([[11.25, 13.5], [20.25, 22.5]]))
    assert torch.allclose(GradCAM(tap="relu1")(net, pixels, 0).maps[0], torch.tensor([[0, 4], [28, 32.5]]))


class Numbers(nn.Module):
    """One of Captum's functions of two numbers, read from two pixels of an image of one channel."""

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        value = self.function(x[:, 0, 0, 0], x[:, 0, 0, 1])
        return torch.stack([value, torch.zeros_like(value)], 1)


@pytest.mark.parametrize("function", [BasicModel2(), BasicModel3()])
@pytest.mark.parametrize("rule", RULES)
def test_ig_gives_captums_known_values(function, rule):
    """Pixels are no probability here: 3 and 1, from 0."""
    net = Model(Numbers(function), CLASSES[:2], size=(1, 2), mean=(0.0,), std=(1.0,)).eval()
    found = IntegratedGradients(steps=500, rule=rule)(net, torch.tensor([[[[3.0, 1.0]]]]), 0)
    assert torch.allclose(found.maps[0, 0], torch.tensor([1.5, -0.5]), atol=0.01)
    assert found.residual.abs().max() < 0.01


def test_gradcam_plus_plus_of_a_toy():
    """Four channels that are their own gradients; their weights by equation 19, sums over places, are these."""
    toy = torch.zeros(1, 4, 2, 2)
    toy[0, 0], toy[0, 1], toy[0, 3, 0, 0] = 1, torch.eye(2), 0.5
    weights = torch.tensor([0.666667, 0.5, 0, 0.222222])
    assert torch.allclose(GradCAMPlusPlus().combine(toy, toy), torch.einsum("c,bchw->bhw", weights, toy), atol=1e-5)
    for channel in range(4):
        alone = toy[:, channel : channel + 1]
        assert torch.allclose(GradCAMPlusPlus().combine(alone, alone), weights[channel] * alone[:, 0], atol=1e-5)
    eye = toy[:, 1:2]
    faint = GradCAMPlusPlus().combine(eye * 1e4, eye * 1e-6)  # gradients far below any epsilon
    assert torch.allclose(faint, eye[:, 0] * 1e4 * 2 * 1e-6 / (2 + 2e4 * 1e-6))
    assert not GradCAMPlusPlus().combine(eye, -eye).any()
    below = torch.tensor([1.0, 0.5, 0, -3]).view(1, 1, 2, 2)  # a sum below 0 counts as 0
    assert torch.allclose(GradCAMPlusPlus().combine(below, below), 0.75 * below[:, 0].relu())


def test_the_family_on_numbers_that_a_pen_can_do():
    feature = torch.tensor([[[[1.0, 2], [0, 4]], [[3, 0], [1, 0]]]])
    gradient = torch.tensor([[[[1.0, -1], [2, 2]], [[-2, 1], [0, -3]]]])
    # channel means of the gradients: 1 and -1
    assert torch.equal(GradCAM().combine(feature, gradient)[0], torch.tensor([[0.0, 2], [0, 4]]))
    assert torch.equal(HiResCAM().combine(feature, gradient)[0], torch.tensor([[0.0, 0], [0, 8]]))
    assert torch.equal(LayerCAM().combine(feature, gradient)[0], torch.tensor([[1.0, 0], [0, 8]]))
    assert torch.equal(CAM().combine(feature, gradient)[0], torch.tensor([[-8.0, 8], [-4, 16]]))
    weights = [1 / (2 + 7) + 2 * 2 / (2 + 14), 1 / (2 + 4)]
    expected = weights[0] * feature[0, 0] + weights[1] * feature[0, 1]
    assert torch.allclose(GradCAMPlusPlus().combine(feature, gradient)[0], expected)


def test_eigencam_of_one_pattern_is_the_pattern():
    pattern = torch.tensor([[0.0, 1, 2], [3, 4, 5]])
    channels = torch.tensor([2.0, 0, 1])
    feature = (channels[:, None, None] * pattern)[None]
    length = channels.norm()
    assert torch.allclose(EigenCAM().read_off(feature)[0], length * (pattern - 2.5).relu(), atol=1e-5)
    assert torch.allclose(EigenCAM(centre=False).read_off(feature)[0], length * pattern, atol=1e-5)
    wide = feature.repeat(1, 4, 1, 1)  # more channels than places: the other product
    assert torch.allclose(EigenCAM().read_off(wide)[0], 2 * length * (pattern - 2.5).relu(), atol=1e-5)
    # strong features come out positive, whatever their sign
    assert torch.allclose(EigenCAM().read_off(-feature)[0], length * (pattern - 2.5).relu(), atol=1e-5)


def test_what_a_linear_head_makes_of_the_family():
    """CAM's mean is the logit less the bias; Grad-CAM and HiResCAM are it over the number of places, rectified."""
    net = model()
    signed = CAM()(net, images(), TARGET)
    logit, bias = signed.logits.gather(1, TARGET[:, None])[:, 0], net.network.fc.bias[TARGET]
    assert signed.maps.min() < 0 < signed.maps.max()
    assert same(signed.maps.mean((1, 2)), logit - bias)
    assert same(GradCAM()(net, images(), TARGET).maps, signed.maps.relu() / 16)
    assert same(HiResCAM()(net, images(), TARGET).maps, signed.maps.relu() / 16)
    assert same(CAM().at(["last"], net, images(), TARGET)["last"].maps, signed.maps)
    net.tap("last")
    assert same(CAM().from_output(net(images()), TARGET), signed.maps)
    with torch.no_grad():
        net.network.fc.weight.abs_()
    positive = HiResCAM()(net, images(), TARGET)
    logit = positive.logits.gather(1, TARGET[:, None])[:, 0]
    assert same(positive.maps.sum((1, 2)), logit - bias)


def test_hirescam_in_front_of_any_linear_head_adds_up():
    """The head weights every place for itself: Grad-CAM misses that, HiResCAM does not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Softplus(), nn.Flatten(), nn.Linear(5 * 16, 4))
    net = Model(network, CLASSES, size=(6, 6)).eval()
    with torch.no_grad():
        network[3].weight.abs_()
    found = HiResCAM(tap="1")(net, images(6), TARGET)
    logit = found.logits.gather(1, TARGET[:, None])[:, 0] - network[3].bias[TARGET]
    assert same(found.maps.sum((1, 2)), logit)
    assert not same(GradCAM(tap="1")(net, images(6), TARGET).maps.sum((1, 2)), logit, 1e-3)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("rule", RULES)
def test_ig_of_a_linear_model_is_exact_with_one_step(baseline, rule):
    net, gradient = linear()
    explain = IntegratedGradients(steps=1, rule=rule, baseline=baseline)
    found = explain(net, images(6), TARGET)
    path = images(6) - explain.start(net, images(6))
    assert same(found.maps, (gradient[TARGET] * path).sum(1))
    assert found.residual.abs().max() < 1e-5


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("rule", RULES)
def test_ig_is_complete(baseline, rule):
    net, pixels = smooth(), images(10).double()
    explain = IntegratedGradients(steps=64, rule=rule, baseline=baseline)
    found = explain(net, pixels, TARGET)
    gained = (net.logits(pixels) - net.logits(explain.start(net, pixels))).gather(1, TARGET[:, None])[:, 0].detach()
    missed = found.maps.sum((1, 2)) - gained
    assert (missed.abs() / gained.abs()).max() < 1e-3
    assert torch.allclose(found.residual, missed, rtol=1e-6, atol=1e-12)
    # one step is not enough here, so the sum is not a tautology
    short = IntegratedGradients(steps=1, rule=rule, baseline=baseline)(net, pixels, TARGET)
    assert short.residual.abs().max() > 10 * missed.abs().max()


@pytest.mark.parametrize("rule", ["gauss", *(pytest.param(rule, marks=pytest.mark.slow) for rule in RULES[1:])])
def test_what_ig_misses_on_a_network_of_relus_falls_with_the_steps(rule):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    net, pixels = Model(nn.Sequential(*layers), CLASSES, size=(10, 10)).eval(), images(10, 32)
    missed = torch.stack(
        [IntegratedGradients(steps=steps, rule=rule)(net, pixels).residual.abs() for steps in (4, 16, 64, 256)]
    )
    for figures in (missed.median(1).values, missed.amax(1)):
        assert (figures[1:] < figures[:-1]).all()
        assert figures[3] < figures[0] / 16


def test_expected_gradients_are_complete():
    net, pixels = smooth(), images(10).double()
    explain = ExpectedGradients(samples=2048)
    explain.reference = torch.rand(8, 3, 10, 10, generator=torch.Generator().manual_seed(5)).double()
    found = explain(net, pixels, TARGET)
    before = net.logits(explain.reference).mean(0)[TARGET]
    gained = (net.logits(pixels).gather(1, TARGET[:, None])[:, 0] - before).detach()
    assert torch.allclose(found.maps.sum((1, 2)) - gained, found.residual, atol=1e-10)
    assert found.residual.abs().max() < 0.01 * gained.abs().max()
    few = ExpectedGradients(samples=8)
    few.reference = explain.reference
    assert few(net, pixels, TARGET).residual.abs().max() > 3 * found.residual.abs().max()


def test_expected_gradients_of_a_linear_model_compare_with_the_mean_image():
    net, gradient = linear()
    explain = ExpectedGradients(samples=21)  # three times each of the seven
    explain.reference = torch.rand(7, 3, 6, 6)
    path = images(6) - explain.reference.mean(0)
    found = explain(net, images(6), TARGET)
    assert same(found.maps, (gradient[TARGET] * path).sum(1))
    assert found.residual.abs().max() < 1e-5


def test_expected_gradients_of_a_function_of_the_logits_are_complete():
    net, _ = linear()
    explain = ExpectedGradients(samples=14)
    explain.reference = torch.rand(7, 3, 6, 6)

    def margin(logits):
        return logits[:, 0] - logits[:, 1]

    found = explain(net, images(6), margin)
    gained = margin(net.logits(images(6))) - margin(net.logits(explain.reference)).mean()
    assert torch.allclose(found.maps.sum((1, 2)), gained, atol=1e-5)
    assert found.residual.abs().max() < 1e-5


def test_expected_gradients_read_their_references_from_the_named_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notation = "shapes:train=40,test=40,size=16"
    named = EXPLAINERS.build(f"expected_gradients:samples=4,data=[{notation}]")
    data = load(notation)
    given = build_explainer("expected_gradients:samples=4", data)
    assert len(given.reference) == len(data.train)
    (net, _), pixels = linear(16), images(16)
    assert torch.equal(named(net, pixels, TARGET).maps, given(net, pixels, TARGET).maps)
    own = ExpectedGradients()
    own.reference = pixels
    assert build_explainer(own, data).reference is pixels, "the user's own stay"


def test_expected_gradients_take_every_reference_as_often_and_at_all_points_of_the_path():
    explain = ExpectedGradients(samples=60)
    explain.reference = torch.arange(8.0)[:, None, None, None].expand(8, 3, 2, 2)
    taken = explain.baselines(images(2))[:, 0, 0, 0].long()
    assert set(taken.bincount().tolist()) == {7, 8}
    for number in range(8):
        gaps = (taken == number).nonzero()[:, 0].diff()
        assert (
            gaps.min() < gaps.max()
        )  # the sample's number is its place on the path: no reference has places of its own
    other = ExpectedGradients(samples=60, seed=1)
    other.reference = explain.reference
    assert not torch.equal(other.baselines(images(2))[:, 0, 0, 0].long(), taken)
    assert torch.equal(explain.baselines(images(2))[:, 0, 0, 0].long(), taken)


@pytest.mark.parametrize("channels", ["max", "norm", "sum"])
def test_smoothgrad_without_noise_is_the_gradient_and_with_noise_not(channels):
    net = model()
    plain = Gradient(channels=channels)(net, images(), TARGET).maps
    assert same(SmoothGrad(noise=0, samples=2, channels=channels)(net, images(), TARGET).maps, plain)
    assert not same(SmoothGrad(noise=0.2, samples=2, channels=channels)(net, images(), TARGET).maps, plain, 1e-2)


@pytest.mark.parametrize("channels", ["max", "norm", "sum"])
def test_smoothgrad_of_a_linear_model_is_its_gradient(channels):
    net, gradient = linear()
    expected = {"max": gradient.abs().amax(1), "norm": gradient.norm(dim=1), "sum": gradient.sum(1)}[channels]
    for explain in (SmoothGrad(channels=channels, noise=0.5), Gradient(channels=channels)):
        assert same(explain(net, images(6), TARGET).maps, expected[TARGET])


def test_smoothgrads_noise_is_as_wide_as_it_says():
    seen = []
    net, _ = linear()
    handle = net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    pixels = images(6) * torch.tensor([1.0, 0.5, 0.25, 1])[:, None, None, None]
    SmoothGrad(samples=500, noise=0.1, chunk=10**6)(net, pixels, TARGET)
    handle.remove()
    noisy = seen[-1].view(4, 500, 3, 6, 6) - pixels[:, None]
    spread = pixels.amax((1, 2, 3)) - pixels.amin((1, 2, 3))
    assert torch.allclose(noisy.std((1, 2, 3, 4)), 0.1 * spread, rtol=0.02)
    assert noisy.mean((1, 2, 3, 4)).abs().max() < 0.01 * spread.max()


def test_occlusion_of_a_linear_model_is_the_windows_share():
    """Windows side by side hide disjoint pixels: every pixel's value is its window's sum of weight times path."""
    net, gradient = linear()
    pixels = images(6)
    share = (gradient[TARGET] * (pixels - 0.25)).sum(1)
    found = Occlusion(window=2, stride=2, baseline=0.25)(net, pixels, TARGET).maps
    windows = share.unflatten(2, (3, 2)).unflatten(1, (3, 2)).sum((2, 4))
    assert same(found, windows.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert same(Occlusion(window=1, baseline=0.25)(net, pixels, TARGET).maps, share)
    whole = Occlusion(window=9, baseline=0.25)(net, pixels, TARGET).maps  # one window, larger than the image
    assert same(whole, share.sum((1, 2))[:, None, None].expand(-1, 6, 6))
    # overlapping windows of 4 at 0 and 2: the corner is in one of them, the middle in the mean of all four
    found = Occlusion(window=4, stride=2, baseline=0.25)(net, pixels, TARGET).maps
    corners = torch.stack([share[:, top : top + 4, left : left + 4].sum((1, 2)) for top in (0, 2) for left in (0, 2)])
    assert same(found[:, 0, 0], corners[0])
    assert same(found[:, 5, 0], corners[2])
    assert same(found[:, 2, 3], corners.mean(0))


class Corner(nn.Module):
    """Says class 1 when the upper left quarter is bright, else class 0; looks nowhere else."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(bright), 10 * (bright - 0.7)], 1)


@pytest.mark.parametrize("part", ["rise:masks=400", "rise:masks=400,baseline=zero", "occlusion"])
def test_the_quarter_that_a_model_reads_stands_out(part):
    net = Model(Corner(), CLASSES[:2], size=(16, 16)).eval()
    bright = torch.full((1, 3, 16, 16), 0.9)
    maps = EXPLAINERS.build(part)(net, bright, 1).maps[0]
    inside, outside = maps[:8, :8], maps[8:, 8:]
    assert inside.mean() > outside.mean() + 0.5 * (maps.max() - maps.min())
    row, column = divmod(int(maps.argmax()), 16)
    assert row < 8
    assert column < 8
    if part != "occlusion":  # what hides the quarter speaks for the other class
        other = EXPLAINERS.build(part)(net, bright, 0).maps[0]
        assert other[:8, :8].mean() < other[8:, 8:].mean()


def test_rise_of_a_model_that_always_says_the_same_is_flat():
    """The map is the mean of the masks weighted by probabilities: constant probabilities give the masks' mean."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))[:, :2] * 0

    net = Model(Constant(), CLASSES[:2], size=(12, 12)).eval()
    found = RISE(masks=4000, keep=0.3)(net, images(12), 0).maps
    assert (found - 0.5).abs().max() < 0.06  # p = 1/2, mean mask / keep = 1
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_from_output_explains_what_it_is_given():
    feature = torch.rand(1, 2, 3, 3, requires_grad=True)
    logits = torch.stack([feature[:, 0].mean((1, 2)), -feature[:, 1].mean((1, 2))], 1)
    output = Output(logits, {"last": feature})
    assert torch.allclose(GradCAM().from_output(output, 0), feature[:, 0] / 9)
    assert not GradCAM().from_output(output, 1).any()
    assert torch.allclose(CAM().from_output(output, 1), -feature[:, 1])


def test_attention_and_channels_are_read_off_the_features():
    net = model().eval()
    net.tap("layer2")
    feature = net(images()).features["layer2"]
    found = EXPLAINERS.build("attention:tap=layer2")(net, images()).maps
    assert torch.allclose(found, feature.square().mean(1))
    strong = EXPLAINERS.build("attention:tap=layer2,power=3")(net, images()).maps
    assert torch.allclose(strong, feature.abs().pow(3).mean(1), rtol=1e-5)
    assert torch.allclose(EXPLAINERS.build("channel:tap=layer2,number=5")(net, images()).maps, feature[:, 5])
    with pytest.raises(UserError, match="no channel 32 at the tap 'layer2', which has 32 channels"):
        EXPLAINERS.build("channel:tap=layer2,number=32")(net, images())


@pytest.mark.parametrize("part", ["gradcam", "cam", "gradcam++:tap=layer2", "occlusion:window=8", "attention"])
def test_maps_of_all_classes_are_those_of_each(part):
    net, explain = model().eval(), EXPLAINERS.build(part)
    found = explain.classwise(net, images())
    assert found.shape[:2] == (4, 4)
    for number in range(4):
        assert torch.allclose(found[:, number], explain(net, images(), number).maps, atol=1e-6)
    assert not any(module._forward_hooks for module in net.network.modules())


def test_ig_by_size_adds_what_colours_say_without_their_sign():
    net = model().eval()
    made = IntegratedGradients(steps=4, channels="size")
    start = made.start(net, images())
    parts = made.attribute(net, images(), start, TARGET)
    assert torch.allclose(made(net, images(), TARGET).maps, parts.abs().sum(1), rtol=1e-5)
    assert not made.signed
    assert torch.allclose(IntegratedGradients(steps=4)(net, images(), TARGET).maps, parts.sum(1), rtol=1e-4, atol=1e-7)
