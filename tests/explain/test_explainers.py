"""Maps are right, leave no trace, and can be trained through."""

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIG
from captum.attr import LayerGradCam
from torch import nn

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.gradcam import GradCAM
from distilens.explain.integrated_gradients import IntegratedGradients, quadrature
from distilens.explain.maps import empty, strength
from distilens.foundation.errors import UserError
from distilens.measure import cosine, energy_in_mask, mean_interval, share
from distilens.models import build_model
from distilens.models.grids import resized
from distilens.models.taps import find, grid

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2, 3, 1])


def images(size: int = 32, count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def model(name: str = "resnet8", size: int = 32) -> Model:
    torch.manual_seed(0)
    found = build_model(name, CLASSES, (size, size))
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return found.eval()


class Smooth(nn.Module):
    """A small network with all derivatives."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), nn.Conv2d(6, 5, 3, stride=2), nn.Tanh()
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        return self.head(self.features(x))


def smooth() -> Model:
    return Model(Smooth(), CLASSES, size=(10, 10)).double().eval()


def test_gradcam_of_a_pooled_linear_head_is_cam():
    net = model()
    net.tap("last")
    found = GradCAM()(net, images(), TARGET).maps
    feature = net(images()).features["last"]
    weights = net.network.fc.weight[TARGET]
    cam = torch.einsum("bchw,bc->bhw", feature, weights).relu() / (8 * 8)
    assert torch.allclose(found, cam, atol=1e-6)
    assert found.shape == (5, 8, 8)


@pytest.mark.parametrize(
    ("name", "tap", "size"),
    [("resnet8", "layer2", 32), ("vgg8", "layer3", 32), ("timm:vit_tiny_patch16_224,size=32", "blocks.10", 32)],
)
def test_gradcam_agrees_with_captum(name, tap, size):
    net = model(name, size)
    found = GradCAM(tap=tap)(net, images(size), TARGET).maps
    module = find(net.network, tap)
    if "vit" in name:
        feature, gradient = tapped(net, module, size)
        peer = (grid(gradient).mean((2, 3), keepdim=True) * grid(feature)).sum(1).relu()
    else:
        captum = LayerGradCam(lambda x: net.network(net.prepare(x)), module)
        peer = captum.attribute(images(size), TARGET, relu_attributions=True)[:, 0].detach()
    assert peer.abs().max() > 0
    assert (found - peer).abs().max() <= 1e-5 * peer.abs().max()


def tapped(net: Model, module: nn.Module, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    kept = []
    handle = module.register_forward_hook(lambda m, i, o: kept.append(o))
    logits = net.network(net.prepare(images(size)))
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), kept[0])
    return kept[0].detach(), gradient


def test_gradcam_from_a_steps_own_output_is_the_same_map():
    net = model()
    net.tap("last")
    assert torch.allclose(
        GradCAM().from_output(net(images()), TARGET), GradCAM()(net, images(), TARGET).maps, atol=1e-7
    )
    top = GradCAM()(net, images())
    assert torch.equal(top.target, top.logits.argmax(1))


def test_the_gradient_of_a_map_loss_agrees_with_finite_differences():
    net = smooth()
    net.tap("features")
    pictures, weight = images(10).double(), net.network.features[0].weight

    def loss() -> torch.Tensor:
        return GradCAM(tap="features").from_output(net(pictures), TARGET, create_graph=True).square().sum() * 1e4

    (gradient,) = torch.autograd.grad(loss(), weight)
    assert gradient.abs().max() > 0
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        step = 1e-6
        weight.add_(step * direction)
        with torch.enable_grad():
            above = loss().item()
        weight.sub_(2 * step * direction)
        with torch.enable_grad():
            below = loss().item()
    assert (gradient * direction).sum().item() == pytest.approx((above - below) / (2 * step), rel=1e-5)


class Touchy(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.ReLU(inplace=True)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), self.shared, nn.Dropout(0.5))
        self.more = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), self.shared)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.more(self.trunk(x)).mean((2, 3)))


@pytest.mark.parametrize("part", ["gradcam", "gradcam:tap=trunk", "ig:steps=3", "ig:steps=2,baseline=blur"])
def test_explaining_leaves_no_trace(part):
    net = Model(Touchy(), CLASSES, size=(16, 16)).train()
    net.network.trunk[1].eval()  # a module in a mode of its own
    net.network.head.bias.requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    before = {
        "state": {key: value.clone() for key, value in net.state_dict().items()},
        "modes": [module.training for module in net.modules()],
        "requires": [parameter.requires_grad for parameter in net.parameters()],
        "random": torch.get_rng_state(),
        "hooks": [len(module._forward_hooks) for module in net.modules()],
        "enabled": torch.is_grad_enabled(),
    }
    EXPLAINERS.build(part)(net, images(16), TARGET)
    assert all(torch.equal(value, before["state"][key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == before["modes"]
    assert [parameter.requires_grad for parameter in net.parameters()] == before["requires"]
    assert torch.equal(torch.get_rng_state(), before["random"])
    assert [len(module._forward_hooks) for module in net.modules()] == before["hooks"]
    assert torch.is_grad_enabled() == before["enabled"]
    assert all(bool((parameter.grad == 0.5).all()) for parameter in net.parameters())


@pytest.mark.parametrize("part", ["gradcam", "ig:steps=4"])
def test_maps_do_not_depend_on_the_rest_of_the_batch_on_no_grad_or_on_autocast(part):
    net, explain = model(), EXPLAINERS.build(part)
    whole = explain(net, images(), TARGET).maps
    scale = whole.abs().max()
    for number in range(5):
        alone = explain(net, images()[number : number + 1], TARGET[number : number + 1]).maps
        assert (alone[0] - whole[number]).abs().max() < 1e-5 * scale
    net.requires_grad_(False)
    with torch.no_grad():
        frozen = explain(net, images(), TARGET).maps
    with torch.autocast("cpu", torch.bfloat16):
        cast = explain(net, images(), TARGET).maps
    assert torch.allclose(frozen, whole, atol=1e-6)
    assert cast.dtype == torch.float32
    assert torch.allclose(cast, whole, atol=1e-6)


def test_ig_of_a_linear_model_is_exact_with_one_step():
    net = Model(nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 4)), CLASSES, size=(6, 6)).eval()
    pictures = images(6)
    weights = net.network[1].weight[TARGET].view(5, 3, 6, 6) / net.std
    for rule in ("gauss", "riemann"):
        found = IntegratedGradients(steps=1, rule=rule, baseline="zero")(net, pictures, TARGET)
        assert torch.allclose(found.maps, (weights * pictures).sum(1), atol=1e-5)
        assert found.residual.abs().max() < 1e-4


@pytest.mark.parametrize("baseline", ["zero", "mean", "blur", 0.4])
def test_ig_is_complete_on_a_smooth_network(baseline):
    net, pictures = smooth(), images(10).double()
    explain = IntegratedGradients(steps=24, baseline=baseline)
    found = explain(net, pictures, TARGET)
    gained = (net.logits(pictures) - net.logits(explain.start(net, pictures))).gather(1, TARGET[:, None])[:, 0]
    assert found.residual.abs().max() < 1e-3 * gained.abs().max()
    assert torch.allclose(found.maps.double().sum((1, 2)) - gained, found.residual, atol=1e-5)


def test_ig_agrees_with_captum_and_does_not_depend_on_the_chunk():
    net = model()
    captum = CaptumIG(lambda x: net.network(net.prepare(x)))
    peer = captum.attribute(images(), torch.zeros_like(images()), TARGET, n_steps=12, method="gausslegendre")
    found = IntegratedGradients(steps=12, baseline="zero")(net, images(), TARGET).maps
    assert (found - peer.sum(1)).abs().max() < 1e-4 * found.abs().max()
    small = IntegratedGradients(steps=12, baseline="zero", chunk=7)(net, images(), TARGET).maps
    assert torch.allclose(found, small, atol=1e-5 * found.abs().max().item())


@pytest.mark.parametrize("rule", ["gauss", "trapezoid", "riemann"])
@pytest.mark.parametrize("steps", [1, 2, 5, 32])
def test_quadrature_integrates_a_line(rule, steps):
    points, weights = quadrature(rule, steps)
    assert sum(weights) == pytest.approx(1)
    assert sum(w * p for p, w in zip(points, weights, strict=True)) == pytest.approx(0.5)


def test_a_target_out_of_range_and_a_flat_tap_are_said():
    with pytest.raises(UserError, match="classes from 0 to 3; given 0 to 9"):
        GradCAM()(model(), images(), torch.tensor([0, 9, 1, 1, 1]))
    with pytest.raises(UserError, match="no spatial extent"):
        GradCAM(tap="fc")(model(), images(), TARGET)


def test_maps_are_resized_by_area_and_empty_ones_are_known():
    maps = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(resized(maps, (2, 2))[0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert resized(maps, (8, 8)).shape == (1, 8, 8)
    assert empty(torch.zeros(2, 3, 3)).all()
    assert strength(-maps).sum().item() == pytest.approx(1)


def test_likeness_of_maps():
    maps = torch.rand(3, 4, 4) + 0.1
    assert torch.allclose(cosine(maps, 7 * maps), torch.ones(3))
    assert torch.allclose(cosine(maps, -maps), -torch.ones(3))
    maps[1] = 0
    found = mean_interval(cosine(maps, maps))
    assert found["n"] == 2
    assert found["empty"] == 1
    assert found["mean"] == pytest.approx(1)
    mask = torch.zeros(3, 8, 8)
    mask[:, :4] = 1
    flat = energy_in_mask(torch.ones(3, 8, 8), mask)
    assert torch.allclose(flat, torch.full((3,), 0.5))


def test_wilsons_interval():
    found = share(torch.tensor([True] * 8 + [False] * 2))
    assert found["accuracy"] == 0.8
    assert (round(found["low"], 4), round(found["high"], 4)) == (0.4902, 0.9433)
