"""What must hold of any map: symmetries, scale, and independence of everything that is not the image."""

import contextlib
import copy

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIG
from torch import nn

from distilens.core import Model
from distilens.explain import EXPLAINERS, check_taps, in_chunks
from distilens.explain.gradcam import GradCAM
from distilens.explain.integrated_gradients import IntegratedGradients
from distilens.foundation.errors import UserError
from distilens.measure.maps.side_by_side import choose
from distilens.models import build_model
from distilens.models.taps import cutting, grid

CLASSES = tuple("abcd")
TARGET = torch.tensor([0, 1, 2, 3, 1])
PARTS = ["gradcam", "gradcam:tap=features.0", "ig:steps=8", "ig:steps=8,baseline=blur,rule=trapezoid"]


def images(size: int = 16) -> torch.Tensor:
    return torch.rand(5, 3, size, size, generator=torch.Generator().manual_seed(1))


class Pooled(nn.Module):
    """Convolutions whose kernels are mirror images of themselves, then a mean: flipping the image flips every feature."""

    def __init__(self, symmetric: bool = True):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(8, 4)
        if symmetric:
            with torch.no_grad():
                for layer in (self.features[0], self.features[2]):
                    layer.weight.copy_((layer.weight + layer.weight.flip(-1)) / 2)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def pooled(symmetric: bool = True) -> Model:
    torch.manual_seed(0)
    return Model(Pooled(symmetric), CLASSES, size=(16, 16)).eval()


@pytest.mark.parametrize("part", PARTS)
def test_the_map_of_a_mirrored_image_is_the_mirrored_map(part):
    explain = EXPLAINERS.build(part)
    net, pixels = (
        pooled().double(),
        images().double(),
    )  # in float32 a sum in another order may fall to a ReLU's other side
    found, mirrored = explain(net, pixels, TARGET).maps, explain(net, pixels.flip(-1), TARGET).maps
    assert found.abs().amax((1, 2)).min() > 0
    assert (found.flip(-1) - mirrored).abs().max() < 1e-9 * found.abs().max()
    skew = pooled(symmetric=False)  # the test could fail: for any other model it does
    apart = explain(skew, images(), TARGET).maps.flip(-1) - explain(skew, images().flip(-1), TARGET).maps
    assert apart.abs().max() > 1e-2 * explain(skew, images(), TARGET).maps.abs().max()


@pytest.mark.parametrize("part", PARTS)
def test_the_map_grows_with_the_logit_and_does_not_know_the_other_classes(part):
    explain, net = EXPLAINERS.build(part), pooled()
    found = explain(net, images(), TARGET).maps
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.network.head.weight.mul_(3)
        twin.network.head.bias.add_(torch.tensor([1.0, -2, 3, 0]))  # a bias has no place in the image
    assert torch.allclose(explain(twin, images(), TARGET).maps, 3 * found, rtol=1e-4, atol=1e-6)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.network.head.weight[3].zero_()
    kept = TARGET != 3
    assert torch.allclose(explain(other, images(), TARGET).maps[kept], found[kept], atol=1e-7)
    assert not explain(other, images(), TARGET).maps[~kept].any()


@pytest.mark.parametrize("part", PARTS)
def test_without_a_target_the_models_own_class_is_explained(part):
    explain, net = EXPLAINERS.build(part), pooled()
    top = net.logits(images()).argmax(1)
    free, given = explain(net, images()), explain(net, images(), top)
    assert torch.equal(free.target, top)
    assert torch.equal(free.maps, given.maps)
    assert torch.allclose(free.logits, net.logits(images()))
    assert not free.maps.requires_grad
    assert not free.logits.requires_grad


@pytest.mark.parametrize("part", PARTS)
def test_chunks_are_the_whole(part):
    explain, net = EXPLAINERS.build(part), pooled()
    whole, parts = explain(net, images(), TARGET), in_chunks(explain, net, images(), TARGET, chunk=2)
    for field in ("maps", "logits", "target", "residual"):
        ours, theirs = getattr(parts, field), getattr(whole, field)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(in_chunks(explain, net, images(), chunk=2).target, explain(net, images()).target)


def test_gradcam_can_be_trained_through_while_parameters_have_gradients_of_their_own():
    net = pooled().train()
    net.tap("last")
    output = net(images())
    maps = GradCAM().from_output(output, TARGET, create_graph=True)
    (maps.mean() + output.logits.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    plain = GradCAM().from_output(net(images()), TARGET)
    assert torch.allclose(plain, maps.detach())
    assert torch.equal(
        GradCAM().from_output(net(images())), GradCAM().from_output(net(images()), output.logits.argmax(1))
    )


def test_gradcam_at_a_tap_records_the_head_alone():
    net = pooled()
    with net.reading("features.0") as tap, cutting(tap):
        net.logits(images())
        feature = tap.take()
        assert torch.is_grad_enabled()
        assert feature.is_leaf
    assert torch.is_grad_enabled()
    with torch.no_grad(), net.reading("features.0") as tap:
        with contextlib.suppress(ZeroDivisionError), cutting(tap):
            net.logits(images())
            raise ZeroDivisionError
        assert not torch.is_grad_enabled()
        assert not tap.cut


@pytest.mark.parametrize(("name", "tap", "channels"), [("timm:swin_tiny_patch4_window7_224,size=64", "last", 768)])
def test_gradcam_reads_features_with_channels_last(name, tap, channels):
    torch.manual_seed(0)
    net = build_model(name, CLASSES, (64, 64)).eval()
    found = GradCAM(tap=tap)(net, images(64), TARGET).maps
    kept = []
    handle = net.network.norm.register_forward_hook(lambda m, i, o: kept.append(o))
    logits = net.logits(images(64))
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), kept[0])
    expected = (kept[0] * gradient.mean((1, 2), keepdim=True)).sum(3).relu()  # [b h w c]
    assert kept[0].shape[-1] == channels
    assert torch.allclose(found, expected.detach(), atol=1e-6)
    assert grid(kept[0]).shape[1] == channels


@pytest.mark.parametrize("baseline", ["zero", "mean", "blur", 0.25])
def test_ig_agrees_with_captum_from_every_baseline(baseline):
    net = pooled()
    explain = IntegratedGradients(steps=10, baseline=baseline)
    start = explain.start(net, images())
    assert start.shape == images().shape
    peer = CaptumIG(lambda x: net.logits(x)).attribute(
        images(), start, TARGET, n_steps=10, method="gausslegendre", return_convergence_delta=True
    )
    found = explain(net, images(), TARGET)
    assert (found.maps - peer[0].sum(1)).abs().max() < 1e-5 * found.maps.abs().max()
    assert torch.allclose(found.residual, peer[1].float(), atol=1e-5)


def test_baselines_are_what_they_are_called():
    net, pixels = pooled(), images()
    assert not IntegratedGradients(baseline="zero").start(net, pixels).any()
    assert (IntegratedGradients().start(net, pixels) == 0.5).all()  # the mean colour: zero for the network
    assert (IntegratedGradients(baseline=0.3).start(net, pixels) == 0.3).all()
    blurred = IntegratedGradients(baseline="blur").start(net, pixels)
    assert torch.allclose(blurred.mean((2, 3)), pixels.mean((2, 3)), atol=0.05)
    assert blurred.var() < 0.2 * pixels.var()
    flat = torch.full((1, 3, 16, 16), 0.4)
    assert IntegratedGradients(baseline="blur")(net, flat, TARGET[:1]).maps.abs().max() < 1e-5


def test_more_steps_miss_less():
    net = pooled()
    missed = [
        IntegratedGradients(steps=n, rule="riemann")(net, images(), TARGET).residual.abs().mean() for n in (1, 4, 64)
    ]
    assert missed[0] > missed[1] > missed[2]


def test_images_of_another_size_get_maps_of_their_own_pixels():
    net, pixels = pooled(), images(24)
    found = IntegratedGradients(steps=4)(net, pixels, TARGET)
    assert found.maps.shape == (5, 24, 24)  # the model resizes for itself; the map is of what was given
    assert GradCAM()(net, pixels, TARGET).maps.shape == (5, 16, 16)


def test_taps_are_checked_before_anything_runs():
    check_taps(["gradcam", "gradcam:tap=features.1", "ig"], pooled())
    with pytest.raises(UserError, match=r"no tap 'feature'.*Did you mean 'features'"):
        check_taps(["ig", "gradcam:tap=feature"], pooled())


def test_the_gallery_prefers_images_on_which_models_differ_and_repeats_none():
    logits = {"teacher": torch.randn(200, 4), "student": torch.randn(200, 4)}
    logits["student"][50:] = logits["teacher"][50:]
    differ = logits["teacher"].argmax(1) != logits["student"].argmax(1)
    for count in (1, 8, 40, 190, 200):
        chosen = choose(logits, count)
        assert len(chosen) == len(set(chosen.tolist())) == count
        assert int(differ[chosen].sum()) >= min(int(differ.sum()), count * 3 // 4)
    assert torch.equal(choose(logits, 8), choose(logits, 8))
    assert len(choose(logits, 500)) == 200
    apart = {"teacher": torch.eye(2).repeat(10, 1), "student": torch.eye(2).flip(0).repeat(10, 1)}
    assert len(choose(apart, 8)) == 8  # where none agree, the rest comes from those that differ
