"""Explanations of dense outputs: against Captum with a fixed region, Seg-Grad-CAM by hand, completeness, and fixed places."""

import numpy as np
import pytest
import torch
from captum import attr
from torch import nn

import dense
from distilens.explain import EXPLAINERS
from distilens.models.model import Model
from distilens.tasks import NOWHERE, Segmentation

TWO = Segmentation(("dark", "bright"))


@pytest.fixture
def model() -> Model:
    """With logits of mean 0, so that it predicts several classes."""
    made = dense.network(width=6).eval()
    with torch.no_grad():
        made.network.head.bias -= made.logits(pixels(8)).mean((0, 2, 3))
    return made


def pixels(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, dense.SIDE, dense.SIDE, generator=torch.Generator().manual_seed(3))


class Summed(nn.Module):
    """Captum's tutorial on segmentation: logits summed over a region that is fixed before, `[b classes]`."""

    def __init__(self, model: Model, region: torch.Tensor):
        super().__init__()
        self.model, self.region = model, region

    def forward(self, images):
        return (self.model.logits(images) * self.region[None, None]).sum((2, 3))


CAPTUM = {
    "ig:steps=12": lambda net, image, number: (
        attr.IntegratedGradients(net)
        .attribute(image, torch.full_like(image, 0.5), target=number, n_steps=12, method="gausslegendre")
        .sum(1)
    ),
    "occlusion:window=4,stride=4": lambda net, image, number: attr.Occlusion(net).attribute(
        image, (3, 4, 4), strides=(3, 4, 4), baselines=0.5, target=number
    )[:, 0],
    "gradcam:tap=middle": lambda net, image, number: attr.LayerGradCam(net, net.model.network.middle).attribute(
        image, target=number, relu_attributions=True
    )[:, 0],
}


@pytest.mark.parametrize("name", CAPTUM)
def test_it_is_captums_map_of_a_fixed_region(model, name):
    image = pixels(1)
    logits = model.logits(image).detach()
    number = int(logits.argmax(1).flatten().mode().values)
    region = (logits.argmax(1) == number)[0]
    assert 0 < region.sum() < region.numel()
    expected = CAPTUM[name](Summed(model, region.float()), image, number)
    maps = EXPLAINERS.build(name)(model, image, torch.where(region[None], number, NOWHERE)).maps
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(maps, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(EXPLAINERS.build(name)(model, image).maps, maps)  # this is the default


def test_seg_grad_cam_by_hand():
    """`a_k = mean_ij d y / d A_kij` and `relu(sum_k a_k A_k)` for a 1x1 and a 3x3 convolution, in loops."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    model = Model(network, dense.TASK, size=(5, 6)).eval()
    image, aim = torch.rand(1, 3, 5, 6), torch.full((1, 5, 6), NOWHERE)
    aim[0, 0, :4], aim[0, 3, 5] = 2, 1  # two classes: each place counts with its own
    first, second = (
        tuple(value.detach().double().numpy() for value in (network[at].weight, network[at].bias)) for at in (0, 2)
    )
    values = (image[0].double().numpy() - 0.5) / 0.25
    feature = np.maximum(np.einsum("kc,chw->khw", first[0][:, :, 0, 0], values) + first[1][:, None, None], 0)
    gradient = np.zeros_like(feature)
    for row, column in np.argwhere(aim[0].numpy() >= 0):
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                at = row + down, column + across
                if 0 <= at[0] < 5 and 0 <= at[1] < 6:
                    gradient[:, at[0], at[1]] += second[0][int(aim[0, row, column]), :, down + 1, across + 1]
    expected = np.maximum(np.einsum("k,khw->hw", gradient.mean((1, 2)), feature), 0)
    assert expected.max() > 0
    maps = EXPLAINERS.build("gradcam:tap=1")(model, image, aim).maps[0]
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_are_complete_for_fixed_places(model):
    images = pixels()
    made = EXPLAINERS.build("ig:steps=128")(model, images)
    ground = torch.full_like(images, 0.5)
    whole, before = (model.task.scalar(model.logits(x), made.target).detach() for x in (images, ground))
    assert (made.maps.sum((1, 2)) - (whole - before)).abs().lt(0.01 * (whole - before).abs()).all()
    assert made.residual.abs().lt(0.01 * (whole - before).abs()).all()


@pytest.mark.parametrize("name", ["ig:steps=4", "smoothgrad:samples=2", "occlusion", "rise:masks=8", "gradcam"])
def test_the_places_are_the_same_before_and_after(model, name):
    images = pixels()
    aim = model.task.explained(model.logits(images))
    given = aim.clone()
    made = EXPLAINERS.build(name)(model, images, given)
    assert torch.equal(given, aim) and torch.equal(made.target, aim)
    assert torch.equal(EXPLAINERS.build(name)(model, images).target, aim)


class Brightness(nn.Module):
    """Each place is bright if the image is: one half against the mean of all pixels."""

    def forward(self, images):
        mean = images.mean((1, 2, 3), keepdim=True).expand(-1, 1, *images.shape[2:])
        return torch.cat([torch.full_like(mean, 0.5), mean], 1)


def test_the_places_are_not_chosen_again_where_an_occlusion_flips_the_prediction():
    model = Model(Brightness(), TWO, size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    images = torch.ones(1, 3, 8, 8)
    hidden = images.clone()
    hidden[..., :6, :] = 0
    assert (model.logits(images).argmax(1) == 1).all() and (model.logits(hidden).argmax(1) == 0).all()
    made = EXPLAINERS.build("occlusion:window=8,stride=8,baseline=zero")(model, images)
    assert torch.allclose(made.maps, torch.full((1, 8, 8), 64.0))  # 64 places fall from 1 to 0
    # chosen again, they would be the places of the other class: 64 - 32
    part = EXPLAINERS.build("occlusion:window=6,stride=6,baseline=zero")(model, images).maps
    assert torch.allclose(part[0, 0, 0], torch.tensor(64 * 36 / 64))
