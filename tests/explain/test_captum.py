"""Whatever attribution of Captum works bare works here, with the same maps."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from distilens.core import Model
from distilens.explain import EXPLAINERS
from distilens.explain.from_captum import attribution, required_parameters
from distilens.foundation.errors import UserError

TARGET = torch.tensor([0, 2])


class Net(nn.Module):
    """Layers for all of which Captum's LRP has a rule."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.head = nn.Linear(4 * 3 * 3, 3)

    def forward(self, pixels):
        return self.head(self.pool(self.relu(self.conv(pixels))).flatten(1))


def names() -> list[str]:
    with pytest.raises(UserError) as error:
        attribution("nothing")
    return str(error.value).partition("Known: ")[2].split(", ")


@pytest.fixture
def world():
    torch.manual_seed(0)
    network = Net().eval()
    return network, torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8)


def bare(name, network, images, reference, options):
    """Captum's own call, with the seeds that ours sets."""
    torch.manual_seed(0)
    np.random.seed(0)
    method = attribution(name)
    places = (network.conv,) if "layer" in required_parameters(method.__init__) else ()
    given = dict(options)
    if "baselines" in required_parameters(method.attribute):
        given["baselines"] = reference
    if "target" in inspect.signature(method.attribute).parameters:
        given["target"] = TARGET
    return method(network, *places).attribute(images.clone().requires_grad_(), **given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", names())
def test_what_works_bare_works_here(world, name):
    network, images, reference = world
    takes = inspect.signature(attribution(name).attribute).parameters
    quarters = (torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4).expand(1, 3, 8, 8)
    options = {"feature_mask": quarters} if "feature_mask" in takes else {}
    options |= {"n_samples": 4} if "n_samples" in takes else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = bare(name, network, images, reference, options)
        except Exception as error:
            pytest.skip(f"does not work bare: {error}")
    tap = {"tap": "conv"} if "layer" in required_parameters(attribution(name).__init__) else {}
    explainer = EXPLAINERS.build(f"captum:{name}{',tap=conv' if tap else ''}")
    explainer.options = options
    explainer.reference = reference
    model = Model(network, tuple("abc"), size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    maps = explainer(model, images, TARGET).maps
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert torch.allclose(maps, expected.detach().sum(1).float(), atol=1e-5), name


def test_lrp_is_of_the_pixels_as_the_network_sees_them(world):
    network, images, _ = world
    model = Model(network, tuple("abc"), size=(8, 8)).eval()
    found = EXPLAINERS.build("captum:LRP")(model, images, TARGET).maps
    expected = bare("LRP", network, model.prepare(images), None, {})
    assert torch.allclose(found, expected.detach().sum(1), atol=1e-5)
