"""The cost of known networks is the published one."""

import pytest
import torch
from torchvision import models as library

from distilens.core import Model
from distilens.measure import macs, parameters


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", None),
        ("resnet50", None),
        ("vgg16", None),
        ("mobilenet_v2", 0.300),  # Sandler et al. 2018, table 4
        ("mobilenet_v3_small", 0.056),  # Howard et al. 2019, table 3
    ],
)
def test_known_networks_have_their_published_cost(name: str, published: float | None):
    """Billions of MACs at 224, as torchvision states them beside its weights, and as the papers do."""
    with torch.device("meta"):
        network = library.get_model(name)
        model = Model(network, tuple(map(str, range(1000))), size=(224, 224)).to("meta")
    stated = library.get_model_weights(name).DEFAULT.meta
    assert parameters(model) == stated["num_params"]
    assert macs(model) / 1e9 == pytest.approx(stated["_ops"], abs=0.0006 if stated["_ops"] < 10 else 0.006)
    if published:
        assert macs(model) / 1e9 == pytest.approx(published, rel=0.01)
