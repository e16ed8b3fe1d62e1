"""Explaining changes nothing: not the model, not torch's state, whatever the caller's modes are and whatever fails inside."""

import contextlib
import copy
import gc

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.explanation import Explainer
from distilens.foundation.errors import UserError
from networks import settled

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2, 3, 1])
PARTS = [
    "gradcam",
    "gradcam:tap=trunk.1",
    "gradcam++:tap=more",
    "layercam:tap=shared",
    "hirescam:tap=trunk",
    "cam",
    "eigencam:tap=trunk",
    "gradient",
    "gradient:channels=sum,times_input=true",
    "smoothgrad:samples=3",
    "ig:steps=3",
    "ig:steps=3,baseline=blur,chunk=4",
    "expected_gradients:samples=6",
    "occlusion:window=6",
    "rise:masks=9",
    "captum:Saliency",
    "captum:LayerGradCam,tap=trunk.0",
    "captum:GradientShap",
    "random",
    "random:grid=3",
    "centre",
]
NEEDS_FORWARDS_WITH_GRADIENTS = [part for part in PARTS if part.split(":")[0] not in ("random", "centre")]


class Touchy(nn.Module):
    """All that is easily disturbed: dropout, batch norms, an in-place ReLU that is called twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.ReLU(inplace=True)
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), self.shared, nn.Dropout(0.5))
        self.more = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        self.last = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        x = self.shared(self.more(x)) + x[:, :, 1:-1, 1:-1]
        if self.fails and len(x) > 1:  # not the example image, by which taps are found
            raise ZeroDivisionError("inside")
        return self.head(self.last(x).mean((2, 3)))


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def touchy() -> Model:
    net = Model(Touchy(), CLASSES, size=(12, 12))
    settled(net).train()
    net.network.trunk[1].eval()  # a module in a mode of its own
    net.network.head.bias.requires_grad_(False)
    net.network.trunk[0].weight.requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    assert net.last_tap == "last"  # found once for a model: here it does not matter under which modes
    return net


def build(part: str) -> Explainer:
    explain = EXPLAINERS.build(part)
    explain.reference = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    return explain


HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_pre_hooks", "_with_kwargs"))]


def state(net: Model) -> dict[str, object]:
    """Everything that explaining could change."""
    assert len(HOOKS) > 6
    return {
        "weights": {name: value.clone() for name, value in net.state_dict().items()},
        "gradients": {name: value.grad.clone() for name, value in net.named_parameters()},
        "requires": {name: value.requires_grad for name, value in net.named_parameters()},
        "modes": {name: module.training for name, module in net.named_modules()},
        "hooks": {(name, kind): len(getattr(module, kind)) for name, module in net.named_modules() for kind in HOOKS},
        "attributes": {name: sorted(vars(module)) for name, module in net.named_modules()},
        "values": {path: tap.value for path, tap in net.taps.items()},
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "enabled": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def assert_same(after: object, before: object, where: str = "") -> None:
    if isinstance(before, dict):
        assert after.keys() == before.keys()
        for key in before:
            assert_same(after[key], before[key], f"{where} {key}")
    elif isinstance(before, Tensor | np.ndarray):
        assert (after == before).all(), where
    else:
        assert after == before, where


@contextlib.contextmanager
def under(mode: str):
    with {
        "plain": contextlib.nullcontext,
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }[mode]():
        yield


def test_the_model_of_these_tests_is_easily_disturbed():
    """Else the tests below would prove nothing."""
    net = touchy()
    before = state(net)
    net(images()).logits.sum().backward()
    after = state(net)
    assert not torch.equal(after["random"], before["random"])
    for key in ("network.more.1.running_mean", "network.more.1.num_batches_tracked"):
        assert not torch.equal(before["weights"][key], after["weights"][key])
    assert not torch.equal(before["gradients"]["network.more.0.weight"], after["gradients"]["network.more.0.weight"])


@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference", "autocast"])
@pytest.mark.parametrize("part", PARTS)
def test_explaining_leaves_no_trace_and_works_in_every_mode_of_the_caller(part, mode):
    net, explain = touchy(), build(part)
    net.tap("trunk")  # a tap of somebody else's
    expected = build(part)(copy.deepcopy(net).eval().requires_grad_(False), images(), TARGET)
    assert expected.maps.abs().amax((1, 2)).min() > 0
    with under(mode):
        pixels, target = images(), TARGET.clone()  # made in the caller's mode
        before = state(net)
        found = explain(net, pixels, target)
        assert_same(state(net), before)
        assert not pixels.requires_grad
        assert torch.equal(pixels, images())
    assert found.maps.dtype == torch.float32
    assert not found.maps.requires_grad
    assert not found.logits.requires_grad
    assert not found.maps.is_inference()
    assert (found.maps - expected.maps).abs().max() <= 1e-6 * expected.maps.abs().max()
    assert torch.allclose(found.logits, expected.logits, atol=1e-6)


@pytest.mark.parametrize("mode", ["plain", "inference"])
@pytest.mark.parametrize("part", NEEDS_FORWARDS_WITH_GRADIENTS)
def test_a_failure_inside_leaves_no_trace(part, mode):
    net, explain = touchy(), build(part)
    net.network.fails = True
    with under(mode):
        before = state(net)
        with pytest.raises(ZeroDivisionError, match="inside"):
            explain(net, images(), TARGET)
        assert_same(state(net), before)
    net.network.fails = False
    before = state(net)
    with pytest.raises(ValueError, match="targets must be classes"):
        explain(net, images(), torch.tensor([0, 1, 2, 3, 9]))
    assert_same(state(net), before)
    explain(net, images(), TARGET)
    assert_same(state(net), before)


def test_a_failure_inside_leaves_no_feature_in_anybodys_tap():
    net = touchy()
    net.tap("trunk")
    net.network.fails = True
    with pytest.raises(ZeroDivisionError):
        build("gradient")(net, images(), TARGET)
    assert net.taps["trunk"].value is None


@pytest.mark.parametrize("path", ["from_output", "from_model"])
def test_a_trainable_map_leaves_gradients_modes_and_statistics(path):
    net = touchy()
    net.tap("trunk")
    explain = build("gradcam:tap=trunk")
    output = net.eval()(images())
    net.train()
    before = state(net)
    before["values"] = {}
    maps = explain.from_output(output, TARGET) if path == "from_output" else explain.from_model(net, images(), TARGET)
    after = state(net)
    after["values"] = {}
    assert_same(after, before)
    assert maps.requires_grad


@pytest.mark.parametrize("part", PARTS)
def test_a_map_is_of_its_image_alone_and_the_same_each_time(part):
    net, explain = touchy().eval(), build(part)
    whole = explain(net, images(), TARGET)
    scale = whole.maps.abs().max()
    assert torch.equal(explain(net, images(), TARGET).maps, whole.maps)
    assert (whole.maps[0] - whole.maps[1]).abs().max() > 1e-3 * scale or part == "centre"
    if "GradientShap" in part:  # draws one for the whole batch, as it says
        return
    turned = explain(net, images().flip(0), TARGET.flip(0)).maps.flip(0)
    assert (turned - whole.maps).abs().max() <= 1e-5 * scale
    for number in range(5):
        alone = explain(net, images()[number : number + 1], TARGET[number : number + 1])
        assert alone.maps.shape == (1, *whole.maps.shape[1:])
        assert (alone.maps[0] - whole.maps[number]).abs().max() <= 1e-5 * scale
        if whole.residual is not None:
            assert torch.allclose(alone.residual[0], whole.residual[number], atol=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_targets_in_every_form(part):
    net, explain = touchy().eval(), build(part)
    given = explain(net, images(), TARGET)
    for form in (TARGET.tolist(), tuple(TARGET.tolist()), TARGET.int(), TARGET.to(torch.uint8)):
        found = explain(net, images(), form)
        assert torch.equal(found.maps, given.maps)
        assert torch.equal(found.target, TARGET)
        assert found.target.dtype == torch.int64
    two = explain(net, images(), torch.full((5,), 2))
    for form in (2, torch.tensor(2)):
        assert torch.equal(explain(net, images(), form).maps, two.maps)
    top = given.logits.argmax(1)
    assert torch.equal(explain(net, images()).target, top)
    assert torch.equal(explain(net, images()).maps, explain(net, images(), top).maps)
    classless = part.split(":")[0] in ("eigencam", "random", "centre")
    assert torch.equal(two.maps, given.maps) == classless


@pytest.mark.parametrize("part", PARTS)
def test_channels_last_and_frozen_models_have_the_same_maps(part):
    net, explain = touchy().eval(), build(part)
    expected = explain(net, images(), TARGET).maps
    frozen = copy.deepcopy(net).requires_grad_(False)
    frozen.network.to(memory_format=torch.channels_last)
    found = explain(frozen, images().to(memory_format=torch.channels_last), TARGET).maps
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert found.is_contiguous()


@pytest.mark.parametrize("part", PARTS)
def test_images_that_have_a_graph_are_explained_without_it(part):
    net, explain = touchy().eval(), build(part)
    pixels = images().requires_grad_()
    found = explain(net, pixels * 1.0, TARGET)
    assert not found.maps.requires_grad
    assert pixels.grad is None
    assert torch.equal(found.maps, explain(net, images(), TARGET).maps)


def living() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize(
    "part",
    ["gradcam", *(pytest.param(p, marks=pytest.mark.slow) for p in ("gradient", "ig:steps=3", "captum:Saliency"))],
)
def test_memory_does_not_grow_with_calls(part):
    net, explain = touchy(), build(part)
    explain(net, images(1), 0)
    before = living()
    for _ in range(60):
        explain(net, images(1), 0)
    assert living() <= before
    kept = [explain(net, images(1), 0) for _ in range(3)]
    assert living() >= before + 3 * len(kept)  # the count counts


@pytest.mark.parametrize("part", ["gradcam:tap=trunk", "gradient", "ig:steps=3"])
def test_memory_does_not_grow_with_maps_that_were_trained_through(part):
    """Cycles of graphs are what `backward(create_graph=True)` would leave."""
    net, explain = touchy(), build(part)
    explain.from_model(net, images(1), 0).sum().backward()
    before = living()
    gc.disable()
    for _ in range(20):
        explain.from_model(net, images(1), 0).sum().backward()
    alive = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    gc.enable()
    assert alive <= before + 5


@pytest.mark.parametrize("part", ["captum:DeepLift", "captum:LRP", "captum:GuidedBackprop"])
def test_captums_hooks_and_attributes_are_gone_whether_it_can_or_not(part):
    """DeepLift and LRP refuse modules that are called twice."""
    net, explain = touchy(), build(part)
    explain.reference = images(5).flip(0)
    before = state(net)
    with contextlib.suppress(UserError):
        explain(net, images(), TARGET)
    assert_same(state(net), before)
    copy.deepcopy(net)


@pytest.mark.parametrize("name", ["LRP", "DeepLift"])
def test_what_captum_cannot_explain_is_said(name):
    explain = build(f"captum:{name}")
    explain.reference = images(5).flip(0)
    with pytest.raises(UserError, match=f"captum:{name} does not work for Touchy: "):
        explain(touchy(), images(), TARGET)
