"""The same values as Captum, pytorch-grad-cam and torch-cam, where they compute what the papers say; and where they do not."""

import warnings

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, InputXGradient, LayerGradCam, Saliency
from captum.attr import IntegratedGradients as CaptumIG
from captum.attr import Occlusion as CaptumOcclusion
from torch import Tensor, nn
from torchcam import methods as torchcam

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.expected_gradients import ExpectedGradients
from distilens.explain.from_captum import CaptumExplainer
from distilens.explain.gradcam import GradCAM
from distilens.explain.gradcam_plus_plus import GradCAMPlusPlus
from distilens.explain.gradient import Gradient
from distilens.explain.integrated_gradients import IntegratedGradients
from distilens.explain.layercam import LayerCAM
from distilens.explain.occlusion import Occlusion
from distilens.explain.smoothgrad import SmoothGrad
from distilens.models import build_model
from distilens.models.taps import find, grid
from networks import convolutional, transformer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports
    import pytorch_grad_cam as pgc
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2, 3])
NETWORKS = ["resnet8", "vgg8", "vit"]
TAPS = [
    ("resnet8", "conv1"),
    ("resnet8", "layer1"),
    ("resnet8", "layer2.0.bn2"),
    ("resnet8", "layer3"),
    ("vgg8", "layer2"),
    ("vgg8", "layer5"),
    ("vit", "vit.layers.0"),
    ("vit", "vit.layers.2.layernorm_before"),
]
PLACES = [(name, tap) for name, tap in TAPS if name != "vit"]


def images(height: int = 32, width: int = 32, count: int = 4) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def model(name: str) -> Model:
    return transformer() if name == "vit" else convolutional(name)


class Plain(nn.Module):
    """A model as the peers want it: from pixels to a tensor of logits."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(images)


def difference(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    """The largest, as a share of the largest value; both maps must say something."""
    theirs = torch.as_tensor(theirs).detach().to(ours.dtype)
    assert ours.shape == theirs.shape
    assert ours.abs().amax((1, 2)).count_nonzero() > 1
    assert theirs.abs().max() > 0
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def from_pytorch_grad_cam(kind, net: Model, tap: str) -> np.ndarray:
    """Its map before it is rectified, scaled to [0, 1] and resized."""
    layer, targets = find(net.network, tap), [ClassifierOutputTarget(int(number)) for number in TARGET]
    reshape = grid if net.name.startswith("ViT") else None
    with kind(Plain(net), [layer], reshape_transform=reshape) as cam:
        cam(images(), targets)
        kept = cam.activations_and_grads
        gradients = kept.gradients[0].numpy() if kept.gradients else None
        return np.asarray(cam.get_cam_image(images(), layer, targets, kept.activations[0].numpy(), gradients, False))


def from_torch_cam(kind, net: Model, tap: str) -> Tensor:
    module = Plain(net)
    with kind(module, find(net.network, tap)) as cam:
        return cam(TARGET.tolist(), module(images()), normalized=False)[0]


def at_tap(net: Model, tap: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The feature and its gradient, by a hook of the test's own."""
    kept = []
    handle = find(net.network, tap).register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = net.logits(pixels).gather(1, TARGET[:, None]).sum()
    handle.remove()
    return kept[0].detach(), torch.autograd.grad(score, kept[0])[0]


@pytest.mark.parametrize(("name", "tap"), TAPS)
@pytest.mark.parametrize(
    ("part", "kind"), [("gradcam", pgc.GradCAM), ("layercam", pgc.LayerCAM), ("hirescam", pgc.HiResCAM)]
)
def test_cams_agree_with_pytorch_grad_cam(name, tap, part, kind):
    net = model(name)
    ours = EXPLAINERS.build(f"{part}:tap={tap}")(net, images(), TARGET).maps
    assert difference(ours, np.maximum(from_pytorch_grad_cam(kind, net, tap), 0)) < 1e-5


@pytest.mark.parametrize(("name", "tap"), TAPS)
def test_eigencam_agrees_with_pytorch_grad_cam_up_to_the_sign_that_it_leaves_open(name, tap):
    net = model(name)
    ours = EXPLAINERS.build(f"eigencam:tap={tap}")(net, images(), TARGET).maps
    theirs = torch.from_numpy(from_pytorch_grad_cam(pgc.EigenCAM, net, tap))
    scale = theirs.abs().amax((1, 2))
    apart = torch.stack([(ours - (sign * theirs).relu()).abs().amax((1, 2)) / scale for sign in (1, -1)])
    assert theirs.min() < 0 < theirs.max()
    assert ours.amax((1, 2)).min() > 0
    assert apart.amin(0).max() < 1e-5
    assert apart.amax(0).min() > 0.1  # one of the signs is right, not both


@pytest.mark.parametrize(("name", "tap"), PLACES)
@pytest.mark.parametrize(("part", "kind"), [("gradcam", torchcam.GradCAM), ("layercam", torchcam.LayerCAM)])
def test_cams_agree_with_torch_cam(name, tap, part, kind):
    net = model(name)
    ours = EXPLAINERS.build(f"{part}:tap={tap}")(net, images(), TARGET).maps
    assert difference(ours, from_torch_cam(kind, net, tap)) < 1e-5


@pytest.mark.parametrize(("name", "tap"), PLACES)
def test_gradcam_agrees_with_captum(name, tap):
    net = model(name)
    peer = LayerGradCam(Plain(net), find(net.network, tap)).attribute(images(), TARGET, relu_attributions=True)
    assert difference(GradCAM(tap=tap)(net, images(), TARGET).maps, peer[:, 0]) < 1e-5


def test_gradcam_of_timms_transformer_is_the_formula():
    torch.manual_seed(0)
    net = build_model("timm:vit_tiny_patch16_224,size=32", CLASSES, (32, 32)).eval()
    feature, gradient = at_tap(net, "blocks.10", images())
    expected = (grid(gradient).mean((2, 3), keepdim=True) * grid(feature)).sum(1).relu()
    assert difference(GradCAM(tap="blocks.10")(net, images(), TARGET).maps, expected) < 1e-5


@pytest.mark.parametrize(("name", "tap"), [("resnet8", "layer1"), ("resnet8", "layer3"), ("vgg8", "layer3")])
def test_gradcam_plus_plus_is_the_papers_and_its_peers_are_not(name, tap):
    """Equations 10 and 19 as loops in float64, against which both libraries are wrong: see the class's docstring."""
    net = model(name).double()
    features, gradients = (value.numpy() for value in at_tap(net, tap, images().double()))
    assert features.min() >= 0  # behind a ReLU, as in the paper
    paper = np.zeros((len(features), *features.shape[2:]))
    cubed = np.zeros(features.shape[:2])
    for image in range(len(features)):
        for channel in range(features.shape[1]):
            total, weight = features[image, channel].sum(), 0.0
            for g in gradients[image, channel].ravel():
                bottom = 2 * g**2 + total * g**3
                alpha = g**2 / bottom if bottom != 0 else 0.0
                weight += alpha * max(g, 0.0)
            paper[image] += weight * features[image, channel]
            cubed[image, channel] = (np.maximum(gradients[image, channel], 0) ** 3).sum()
    paper = np.maximum(paper, 0)
    assert difference(GradCAMPlusPlus(tap=tap)(net, images().double(), TARGET).maps, paper) < 1e-6
    single = model(name)
    assert difference(GradCAMPlusPlus(tap=tap)(single, images(), TARGET).maps, paper) < 1e-5
    # pytorch-grad-cam: an epsilon of 1e-6 beside gradients whose squares are smaller
    theirs = np.maximum(from_pytorch_grad_cam(pgc.GradCAMPlusPlus, single, tap), 0)
    assert difference(torch.as_tensor(paper), theirs) > 0.01
    # torch-cam: the weights are the sum of cubes, for the division goes to a copy
    theirs = from_torch_cam(torchcam.GradCAMpp, single, tap)
    assert difference(torch.as_tensor(np.einsum("bc,bchw->bhw", cubed, features)), theirs) < 1e-5
    shapes = [values / np.abs(values).max() for values in (paper, theirs.numpy())]
    assert np.abs(shapes[0] - shapes[1]).max() > 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_the_input_gradient_agrees_with_captum(name):
    net = model(name)
    signed = Saliency(Plain(net)).attribute(images().requires_grad_(), TARGET, abs=False)
    times = InputXGradient(Plain(net)).attribute(images().requires_grad_(), TARGET)
    for explain, peer in (
        (Gradient(), signed.abs().amax(1)),
        (Gradient(channels="norm"), signed.norm(dim=1)),
        (Gradient(channels="sum"), signed.sum(1)),
        (Gradient(channels="sum", times_input=True), times.sum(1)),
        (Gradient(channels="max", times_input=True), times.abs().amax(1)),
    ):
        assert difference(explain(net, images(), TARGET).maps, peer) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("rule", "method"), [("gauss", "gausslegendre"), ("riemann", "riemann_middle")])
def test_ig_agrees_with_captum(name, rule, method):
    """In float64, as all that sums gradients here: by rounding, float32 puts some points on the other side of a ReLU."""
    net, pixels = model(name).double(), images().double()
    peer = CaptumIG(Plain(net)).attribute(pixels, 0.3, TARGET, n_steps=6, method=method)
    found = IntegratedGradients(steps=6, rule=rule, baseline=0.3, chunk=7)(net, pixels, TARGET)
    assert difference(found.maps, peer.sum(1)) < 1e-5
    end = Saliency(Plain(net)).attribute(pixels.requires_grad_(), TARGET, abs=False)
    assert difference(found.maps, ((pixels - 0.3) * end).sum(1)) > 0.01  # the path matters


@pytest.mark.parametrize(
    ("name", "height", "width", "window", "stride"),
    [
        *(("resnet8", *shape) for shape in [(32, 32, 8, 8), (32, 32, 8, 4), (32, 32, 9, 5), (24, 32, 10, 7)]),
        *(("vit", *shape) for shape in [(32, 32, 8, 4), (32, 32, 9, 5), (24, 32, 10, 7), (20, 13, 6, 6)]),
        ("vgg8", 32, 24, 11, 9),
    ],
)
def test_occlusion_agrees_with_captum_where_windows_are_cut_off_too(name, height, width, window, stride):
    net, pixels = model(name).double(), images(height, width, 2).double()  # small differences of large logits
    peer = CaptumOcclusion(Plain(net)).attribute(
        pixels, (3, window, window), (3, stride, stride), torch.full_like(pixels, 0.4), TARGET[:2]
    )
    assert torch.equal(peer[:, 0], peer[:, 2])
    found = Occlusion(window=window, stride=stride, baseline=0.4, chunk=7)(net, pixels, TARGET[:2]).maps
    assert difference(found, peer[:, 0]) < 1e-5


def test_occlusions_defaults_are_captums_with_the_same_numbers():
    net = model("resnet8")
    peer = CaptumOcclusion(Plain(net)).attribute(images(), (3, 8, 8), (3, 4, 4), net.mean.expand_as(images()), TARGET)
    assert difference(Occlusion()(net, images(), TARGET).maps, peer[:, 0]) < 1e-5


def test_expected_gradients_of_a_linear_model_are_gradient_shap():
    net = Model(nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 4)), CLASSES, size=(6, 6)).eval()
    pixels, baseline = images(6, 6), images(6, 6, 5)[4:]
    peer = GradientShap(Plain(net)).attribute(pixels, baseline, n_samples=3, stdevs=0.0, target=TARGET)
    explain = ExpectedGradients(samples=5)
    explain.reference = baseline
    assert difference(explain(net, pixels, TARGET).maps, peer.sum(1)) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_expected_gradients_with_one_reference_are_ig_from_there(name):
    net, pixels, baseline = model(name).double(), images().double(), images(count=5)[4:].double()
    explain = ExpectedGradients(samples=9)
    explain.reference = baseline
    found = explain(net, pixels, TARGET)
    peer = CaptumIG(Plain(net)).attribute(
        pixels, baseline, TARGET, n_steps=9, method="riemann_middle", return_convergence_delta=True
    )
    assert difference(found.maps, peer[0].sum(1)) < 1e-5
    assert (found.residual - peer[1]).abs().max() < 1e-5 * found.logits.abs().max()


def test_expected_gradients_are_the_mean_of_captums_ig_over_the_references():
    """Where the points are dense: the order in which references meet the points of the path is drawn."""
    net, baselines = model("vit").double(), images(count=7)[4:].double()
    explain = ExpectedGradients(samples=3 * 256)
    explain.reference = baselines
    found = explain(net, images().double(), TARGET).maps
    ig = CaptumIG(Plain(net))
    peer = sum(ig.attribute(images().double(), one[None], TARGET, n_steps=50).sum(1) for one in baselines) / 3
    assert difference(found, peer) < 0.05
    one = ig.attribute(images().double(), baselines[:1], TARGET, n_steps=50).sum(1)
    assert difference(found, one) > 0.2


@pytest.mark.parametrize("name", NETWORKS)
def test_smoothgrad_is_the_mean_of_captums_saliency_over_the_same_noise(name):
    net, explain = model(name).double(), SmoothGrad(samples=3, noise=0.2, channels="sum")
    pixels = images().double()
    spread = 0.2 * torch.stack([image.max() - image.min() for image in pixels])[:, None, None, None]
    noisy = [pixels + spread * noise for noise in explain.fields(pixels)]
    peer = sum(Saliency(Plain(net)).attribute(one.requires_grad_(), TARGET, abs=False) for one in noisy) / 3
    assert difference(explain(net, pixels, TARGET).maps, peer.sum(1)) < 1e-5
    assert difference(SmoothGrad(samples=3, noise=0.2)(net, pixels, TARGET).maps, peer.abs().amax(1)) < 1e-5


@pytest.mark.parametrize(
    ("part", "peer"),
    [
        ("captum:Saliency", lambda net: Saliency(Plain(net)).attribute(images().requires_grad_(), TARGET)),
        ("captum:Saliency,abs=false", lambda net: Saliency(Plain(net)).attribute(images(), TARGET, abs=False)),
        (
            "captum:IntegratedGradients,n_steps=5",
            lambda net: CaptumIG(Plain(net)).attribute(images(), target=TARGET, n_steps=5),
        ),
        (
            "captum:LayerGradCam,tap=layer2",
            lambda net: LayerGradCam(Plain(net), net.network.layer2).attribute(images(), TARGET),
        ),
    ],
)
def test_captum_by_name_is_captum(part, peer):
    net = model("resnet8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer(net).sum(1)
    assert difference(EXPLAINERS.build(part)(net, images(), TARGET).maps, theirs) < 1e-6


@pytest.mark.parametrize("name", ["DeepLift", "DeepLiftShap", "GradientShap", "GuidedBackprop", "InternalInfluence"])
def test_captums_others_run_and_say_the_same_twice(name):
    net = model("resnet8")
    explain = CaptumExplainer(name, tap="layer2" if name == "InternalInfluence" else None)
    explain.reference = images(count=7)[4:]
    numpy_state = np.random.get_state()[1].copy()
    first, second = explain(net, images(), TARGET).maps, explain(net, images(), TARGET).maps
    assert first.abs().amax((1, 2)).min() > 0
    assert torch.equal(first, second)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_an_activation_of_captum_takes_no_target():
    net = model("resnet8")
    found = EXPLAINERS.build("captum:LayerActivation,tap=layer3")(net, images(), TARGET).maps
    assert difference(found, at_tap(net, "layer3", images())[0].sum(1)) < 1e-6


@pytest.mark.parametrize(("name", "tap"), [("resnet8", "layer2"), ("vgg8", "layer4")])
def test_layercam_and_gradcam_differ_so_that_the_peers_tell_them_apart(name, tap):
    net = model(name)
    ours, other = LayerCAM(tap=tap)(net, images(), TARGET).maps, GradCAM(tap=tap)(net, images(), TARGET).maps
    assert difference(ours / ours.max(), other / other.max()) > 0.1
