"""The default tap of a dense task: the end of the encoder. At the input of a 1x1 head, Grad-CAM is the logit map again."""

import pytest
import torch
from torch import nn

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.models import build_model
from distilens.tasks import NOWHERE, Segmentation

TASK = Segmentation(("sky", "road", "car"))
CAMS = ("gradcam", "gradcam++", "layercam", "hirescam", "eigencam", "attention", "channel")


@pytest.fixture
def unet() -> Model:
    torch.manual_seed(0)
    return build_model("unet:width=4", TASK, (32, 48)).eval()


def summed(aim):
    return lambda outputs: TASK.scalar(outputs, aim)


def aim_at(rows: slice, columns: slice, number: int) -> torch.Tensor:
    aim = torch.full((2, 32, 48), NOWHERE)
    aim[:, rows, columns] = number
    return aim


def test_at_a_1x1_head_it_is_the_logit_map_again(unet):
    """Seg-Grad-CAM there is |M| / n relu(W_c A), for an aim M of one class and n places."""
    images, aim = torch.rand(2, 3, 32, 48), aim_at(slice(3, 10), slice(20, 31), 1)
    maps = EXPLAINERS.build("gradcam:tap=decoder.2")(unet, images, summed(aim)).maps
    unet.tap("decoder.2")
    feature = unet(images).features["decoder.2"].detach()
    expected = 7 * 11 / (32 * 48) * torch.einsum("bchw,c->bhw", feature, unet.network.head.weight[1, :, 0, 0]).relu()
    assert expected.amax() > 0
    assert torch.allclose(maps, expected, atol=1e-7)


@pytest.mark.parametrize("name", CAMS)
def test_the_default_is_the_bottleneck(unet, name):
    images, target = torch.rand(2, 3, 32, 48), summed(aim_at(slice(3, 10), slice(20, 31), 1))
    default, named = EXPLAINERS.build(name), EXPLAINERS.build(f"{name}:tap=encoder.3")
    maps = default(unet, images, target).maps
    assert maps.shape == (2, 4, 6)
    assert torch.equal(maps, named(unet, images, target).maps)
    default.attach(unet)
    from_output = default.from_output(unet(images), target, create_graph=False)
    assert torch.allclose(from_output, maps, atol=1e-6)
    assert torch.allclose(default.from_model(unet, images, target), maps, atol=1e-6)
    assert torch.equal(default.at(["last"], unet, images, target)["last"].maps, maps)


def test_taps_count_from_the_end_of_the_encoder(unet):
    assert [unet.path_of(tap) for tap in ("last", "last-1", "last-2", "coarsest")] == [
        "encoder.3",
        "encoder.2",
        "encoder.1",
        "encoder.3",
    ]


def test_nothing_changes_for_a_classification():
    model = build_model("resnet8", ("a", "b"), (32, 32)).eval()
    images = torch.rand(2, 3, 32, 32)
    default, named = EXPLAINERS.build("gradcam"), EXPLAINERS.build("gradcam:tap=layer3")
    assert torch.equal(default(model, images, 1).maps, named(model, images, 1).maps)
    assert model.path_of("coarsest") == model.path_of("last") == "layer3"


class Pyramid(nn.Module):
    """Without parts of a usual name: a trunk, a pyramid of poolings, and a head on the trunk's grid, upsampled."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 8, 1))
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(8, 3, 1), nn.Upsample(scale_factor=4, mode="bilinear"))

    def forward(self, pixels):
        feature = self.trunk(pixels)
        context = nn.functional.interpolate(self.pooled(feature), feature.shape[-2:], mode="bilinear")
        return self.head(self.mix(feature + context).relu())


def test_neither_the_head_nor_pooled_context_is_the_coarsest():
    torch.manual_seed(0)
    model = Model(Pyramid(), TASK, size=(32, 48)).eval()
    assert model.path_of("coarsest") == "trunk"
