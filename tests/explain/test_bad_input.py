"""What a user can get wrong, and what they are told."""

import builtins
import re
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import config
from torch import Tensor, nn

from distilens.core import Model
from distilens.explain import EXPLAINERS, check_taps
from distilens.explain.gradcam import GradCAM
from distilens.foundation.errors import UserError
from distilens.models import build_model

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2])
ALL = ["gradcam", "gradient", "eigencam", "smoothgrad:samples=2", "ig:steps=2", "expected_gradients:samples=2"]
ALL += ["occlusion", "rise:masks=3", "random", "centre", "captum:Saliency"]


@pytest.fixture(autouse=True)
def unchecked():
    """A user has no shape checks of annotations: the messages are those that they see."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def images() -> Tensor:
    return torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    def __init__(self, end: nn.Module | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
        self.middle = nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, 4)
        self.unused = nn.Conv2d(3, 3, 1)
        self.end = end

    def forward(self, x: Tensor):
        logits = self.head(self.pool(self.middle(self.features(x))).flatten(1))
        return logits if self.end is None else self.end(logits)


def small(end: nn.Module | None = None) -> Model:
    return Model(Small(end), CLASSES, size=(12, 12)).eval()


def explain(part: str, net: Model, pixels: Tensor, target=None):
    made = EXPLAINERS.build(part)
    made.reference = images()
    return made(net, pixels, target)


@pytest.mark.parametrize("tap", ["pool", "head", ""])
def test_a_tap_without_places(tap):
    if not tap:
        with pytest.raises(UserError, match="no tap ''"):
            GradCAM(tap=tap)(small(), images(), TARGET)
    elif tap == "head":
        with pytest.raises(
            UserError, match=r"a feature of shape \[3, 4\] has no spatial extent: tap a layer that gives"
        ):
            GradCAM(tap=tap)(small(), images(), TARGET)
    else:
        with pytest.raises(
            UserError, match=r"a feature of shape \[3, 5, 1, 1\] has only one place: tap a layer before"
        ):
            GradCAM(tap=tap)(small(), images(), TARGET)


@pytest.mark.parametrize("part", ["gradcam", "eigencam", "captum:LayerGradCam"])
def test_a_tap_that_does_not_exist_names_the_nearest(part):
    said = r"no tap 'featurs'.*Did you mean 'features'\? Taps: input, last, coarsest, features, middle, pool, head"
    with pytest.raises(UserError, match=said):
        explain(f"{part}{',' if ':' in part else ':'}tap=featurs", small(), images(), TARGET)
    with pytest.raises(UserError, match=said):
        check_taps([f"{part}{',' if ':' in part else ':'}tap=featurs"], small())


def test_a_tap_that_the_forward_does_not_reach():
    with pytest.raises(UserError, match="gives no tensor at the tap 'unused': name another module"):
        GradCAM(tap="unused")(small(), images(), TARGET)


def test_a_tap_that_the_logits_do_not_depend_on():
    class Aside(Small):
        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return super().forward(x)

    net = Model(Aside(), CLASSES, size=(12, 12)).eval()
    with pytest.raises(UserError, match=r"no gradient reaches the tap 'unused'.*have no gradient with respect to it"):
        GradCAM(tap="unused")(net, images(), TARGET)
    with pytest.raises(UserError, match="'features', 'unused'"):
        GradCAM().at(["features", "unused"], net, images(), TARGET)


@dataclass
class Scores:
    scores: Tensor
    extra: int = 0


@dataclass
class WithLogits:
    logits: Tensor


class Returning(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, logits: Tensor):
        return self.make(logits)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: {"scores": x, "loss": 0}, "a dict with the keys scores, loss"),
        (lambda x: (x, x), r"a tuple of 2: a tensor of shape \[.*, 4\], a tensor of shape"),
        (lambda x: Scores(x), "a Scores with scores, extra"),
        (lambda x: x.sum(1), r"a tensor of shape \[\d\]"),
        (lambda x: None, "a NoneType"),
    ],
)
@pytest.mark.parametrize("part", ["gradcam:tap=features", "gradient", "ig", "occlusion", "rise", "random"])
def test_a_model_that_returns_no_logits_hears_what_it_returned(make, said, part):
    with pytest.raises(UserError, match=rf"must return logits \[b classes\], or a structure with .logits; .* {said}"):
        explain(part, small(Returning(make)), images(), TARGET)


@pytest.mark.parametrize(
    "make",
    [lambda x: {"logits": x, "loss": 0}, lambda x: OrderedDict(out=x, aux=x * 2), lambda x: WithLogits(x)],
)
@pytest.mark.parametrize("part", ["gradcam", "cam", *ALL[1:]])
def test_a_model_that_returns_logits_in_a_structure_is_explained(make, part):
    expected = explain(part, small(), images(), TARGET)
    found = explain(part, small(Returning(make)), images(), TARGET)
    assert found.maps.any()
    assert torch.allclose(found.maps, expected.maps, atol=1e-7)
    assert torch.allclose(found.logits, expected.logits)


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize(
    ("target", "said"),
    [
        (torch.tensor([0, 4, 1]), "targets must be classes from 0 to 3; given 0 to 4"),
        (torch.tensor([0, -1, 1]), "targets must be classes from 0 to 3; given -1 to 1"),
        (-1, "given -1 to -1"),
        ([0, 1], r"one target per image: 3 images, targets of shape \[2\]"),
        (torch.zeros(3, 1, dtype=torch.long), r"targets of shape \[3, 1\]"),
        (torch.tensor([0.0, 1, 2]), "targets must be class numbers; given torch.float32"),
        (torch.tensor([True, False, True]), "targets must be class numbers; given torch.bool"),
        ([0.5, 1, 2], "targets must be class numbers; given torch.float32"),
    ],
)
def test_targets_that_are_none(part, target, said):
    with pytest.raises(UserError, match=said):
        explain(part, small(), images(), target)


@pytest.mark.parametrize("part", ["gradcam", "ig:steps=2", "smoothgrad:samples=2", "gradient"])
def test_targets_in_a_loss_are_checked_as_well(part):
    made, net = EXPLAINERS.build(part), small()
    with pytest.raises(UserError, match="targets must be classes from 0 to 3; given -1 to 2"):
        made.from_model(net, images(), torch.tensor([0, -1, 2]))


def broken(*numbers: int, value: float = float("nan"), count: int = 12) -> Tensor:
    pixels = torch.rand(count, 3, 12, 12)
    for number in numbers:
        pixels[number, 1, 3, 4] = value
    return pixels


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (broken(1, 7), "images 1, 7 of the batch have pixels that are NaN or infinite"),
        (broken(2, value=float("inf")), "images 2 of the batch"),
        (broken(*range(10)), "images 0, 1, 2, 3, 4, 5, 6, 7 "),
        (torch.empty(0, 3, 12, 12), "no images to explain: the batch is empty"),
        (torch.zeros(2, 3, 12, 12, dtype=torch.uint8), "given torch.uint8: divide them by 255"),
        (torch.rand(12, 12), r"images to explain are \[b 3 h w\]; given \[12, 12\]"),
        (torch.rand(3, 12, 12), r"given \[3, 12, 12\]"),
        (torch.rand(2, 1, 12, 12), r"given \[2, 1, 12, 12\]"),
        (torch.rand(2, 12, 12, 3), r"given \[2, 12, 12, 3\]"),
        (torch.rand(2, 3, 12, 12, device="meta"), "the images are on meta, the model is on cpu: move one of them"),
    ],
)
def test_images_that_cannot_be_explained(part, pixels, said):
    with pytest.raises(UserError, match=said):
        explain(part, small(), pixels)


def test_several_taps_check_their_images_too():
    with pytest.raises(UserError, match="the batch is empty"):
        GradCAM().at(["features"], small(), torch.empty(0, 3, 12, 12))


class Cut(nn.Module):
    """Lets values through and no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() * 10).round() / 10


@pytest.mark.parametrize("part", ["gradcam:tap=features", "layercam:tap=features.0", "gradient", "ig", "smoothgrad"])
def test_a_module_that_lets_no_gradient_through_is_named(part):
    net = small()
    net.network.middle = Cut()
    where = {"gradcam": "features", "layercam": "features.0"}.get(part.split(":")[0], "input")
    said = rf"no gradient reaches the tap '{where}' of Small: middle \(Cut\) returns values without a gradient"
    with pytest.raises(UserError, match=said):
        explain(part, net, images(), TARGET)
    assert explain("gradcam:tap=middle", net, images(), TARGET).maps.any()  # as the message proposes
    assert explain("occlusion", net, images(), TARGET).maps.any()
    tapping = small()
    tapping.network.middle = Cut()
    tapping.tap("features")
    with pytest.raises(UserError, match="the logits have no gradient at the tap 'features'"):
        GradCAM(tap="features").from_output(tapping(images()), TARGET)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory: tried to allocate 3 GiB")


@pytest.mark.parametrize("part", ["gradcam:tap=features", "gradient", "ig", "captum:Saliency"])
def test_running_out_of_memory_is_not_taken_for_a_missing_gradient(part):
    net = small(Returning(Failing.apply))
    with pytest.raises(torch.OutOfMemoryError, match="3 GiB"):
        explain(part, net, images(), TARGET)


def test_an_output_of_a_forward_without_a_graph():
    net = small()
    net.tap("features")
    with torch.no_grad():
        output = net(images())
    with pytest.raises(UserError, match="the output must come from a forward pass with a graph"):
        GradCAM(tap="features").from_output(output, TARGET)


def test_an_output_without_the_tap():
    net = small()
    with pytest.raises(UserError, match=r"no feature at 'last': call model.tap\('last'\) first. Tapped: none"):
        GradCAM().from_output(net(images()), TARGET)
    net.tap("features")
    with pytest.raises(UserError, match="Tapped: features"):
        EXPLAINERS.build("eigencam").from_output(net(images()), TARGET)


@pytest.mark.parametrize("head", ["vgg", "two layers", "weighted places"])
def test_cam_of_a_network_that_does_not_end_in_a_mean_and_a_layer(head):
    torch.manual_seed(0)
    if head == "vgg":
        net = build_model("vgg8", CLASSES, (32, 32)).eval()
        net.network.avgpool = nn.AdaptiveMaxPool2d(1)
    elif head == "two layers":
        net = small(nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))
    else:
        layers = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 4)
        net = Model(nn.Sequential(*layers), CLASSES, size=(12, 12)).eval()
    with pytest.raises(UserError, match=r"does not end in a mean over places and one linear layer.*use gradcam"):
        EXPLAINERS.build("cam")(net, images(), TARGET)


def test_expected_gradients_and_its_references():
    made = EXPLAINERS.build("expected_gradients:samples=2")
    with pytest.raises(
        UserError, match=r"needs reference images: write expected_gradients:data=\[DATA\], or set explainer.reference"
    ):
        made(small(), images(), TARGET)
    with pytest.raises(UserError, match="needs reference images"):
        made.from_model(small(), images(), TARGET)
    made.reference = torch.rand(4, 3, 8, 8)
    with pytest.raises(UserError, match=r"reference images are \[3, 8, 8\], the images to explain \[3, 12, 12\]"):
        made(small(), images(), TARGET)
    for reference, said in (
        (torch.empty(0, 3, 12, 12), "there are no reference images"),
        (torch.zeros(2, 3, 12, 12, dtype=torch.uint8), "divide them by 255"),
    ):
        made.reference = reference
        with pytest.raises(UserError, match=said):
            made(small(), images(), TARGET)


def test_captum_by_a_wrong_name_or_option():
    for part, said in (
        ("captum:Salency", r"no attribution 'Salency'. Did you mean 'Saliency'\? Known: .*Saliency"),
        ("captum:Saliency,abz=false", r"unknown option 'abz' of captum:Saliency. Did you mean 'abs'\? Options: abs"),
        ("captum:LayerGradCam", "captum:LayerGradCam needs tap="),
        ("captum:Saliency,tap=features", "captum:Saliency takes no tap="),
        ("captum", "'captum' needs captum:NAME"),
    ):
        with pytest.raises(UserError, match=said):
            EXPLAINERS.build(part)


def test_captum_that_compares_needs_references():
    with pytest.raises(UserError, match=r"captum:GradientShap compares with reference images: set explainer.reference"):
        EXPLAINERS.build("captum:GradientShap")(small(), images(), TARGET)


def test_captum_that_gives_no_map_an_image():
    made = EXPLAINERS.build("captum:FeatureAblation")
    made.method = type("Whole", (made.method,), {"attribute": lambda self, inputs, target=None: torch.ones(1)})
    with pytest.raises(UserError, match="captum:FeatureAblation does not return one map per image"):
        made(small(), images(), TARGET)


def test_captum_that_is_not_installed(monkeypatch):
    real = builtins.__import__

    def without(name: str, *arguments, **options):
        if name.split(".")[0] == "captum":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"captum:NAME needs Captum: pip install 'distilens\[captum\]'"):
        EXPLAINERS.build("captum:Saliency")


@pytest.mark.parametrize("part", ["gradcam", "gradcam++", "hirescam", "eigencam", "cam", "gradient", "ig:steps=2"])
def test_a_model_whose_weights_are_broken_gives_maps_that_show_it(part):
    """NaN is not hidden as 0, by a ReLU for example."""
    net = small()
    with torch.no_grad():
        net.network.features[0].weight[:] = float("nan")
    if part == "cam":  # the head cannot be told any more
        with pytest.raises(UserError, match="no closed-form CAM"):
            explain(part, net, images(), TARGET)
        return
    found = explain(part, net, images(), TARGET)
    assert found.maps.isnan().flatten(1).any(1).all()
    assert found.logits.isnan().all()


def test_eigencam_of_one_broken_feature_leaves_the_others():
    made, feature = EXPLAINERS.build("eigencam"), torch.rand(3, 4, 5, 5)
    expected = made.read_off(feature)
    feature[1, 2, 3, 3] = float("inf")
    found = made.read_off(feature)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("ig:steps=0", "steps"),
        ("ig:rule=simpson", "rule"),
        ("ig:baseline=2", "baseline"),
        ("rise:keep=1", "keep"),
        ("occlusion:window=0", "window"),
        ("occlusion:baseline=blur", "baseline"),
        ("smoothgrad:noise=-1", "noise"),
        ("gradient:channels=mean", "channels"),
        ("centre:spread=0", "spread"),
        ("gradkam", "Did you mean 'gradcam'"),
        ("gradcam:tab=layer2", "Did you mean 'tap'"),
    ],
)
def test_options_are_checked_where_they_are_read(part, said):
    with pytest.raises(UserError, match=said):
        EXPLAINERS.build(part)


@pytest.mark.parametrize("part", ["cam", "captum:LRP"])
def test_a_function_to_explain_needs_gradients(part):
    name = re.escape(f"{part} explains a class, but the target is a function: take an explainer that uses gradients")
    with pytest.raises(UserError, match=name):
        explain(part, small(), images(), lambda logits: logits[:, 0])


@pytest.mark.parametrize(
    ("function", "given"),
    [(lambda logits: logits, r"\[3, 4\]"), (lambda logits: logits.sum(), r"\[\]"), (lambda logits: 1.0, "float")],
)
def test_a_function_to_explain_returns_a_number_per_image(function, given):
    message = rf"a function to explain must return one number per image, \[3\]; it returned {given}$"
    for part in ("gradcam", "gradient"):
        with pytest.raises(UserError, match=message):
            explain(part, small(), images(), function)


def test_only_an_explainer_of_features_needs_a_tap():
    net = small()
    EXPLAINERS.build("occlusion").attach(net)
    assert net(images()).features == {}
    EXPLAINERS.build("gradcam:tap=features").attach(net)
    assert list(net(images()).features) == ["features"]
