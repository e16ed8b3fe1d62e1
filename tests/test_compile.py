"""The student's forward is one graph, whatever is tapped and inserted, and a stored or live teacher stays outside of it."""

import pytest
import torch
from torch import nn

from distilens.models import build_model

CLASSES = tuple("abcd")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, feature, inputs):
        return feature * self.factor


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2", "vgg8", "wrn-16-1", "shrink:blocks=9"])
def test_a_tapped_student_with_a_part_compiles_without_a_graph_break(name):
    """`fullgraph` raises where a graph would break; `aot_eager` traces forward and backward as the real backend does."""
    model = build_model(name, CLASSES, (32, 32))
    place = model.tap("last")
    model.insert(place, Scaled(), name="part")
    images = torch.rand(4, 3, 32, 32)
    model.eval()
    plain = model(images)
    torch._dynamo.reset()
    model.network.compile(fullgraph=True, backend="aot_eager")
    compiled = model(images)
    assert torch.allclose(compiled.logits, plain.logits, atol=1e-4)
    assert torch.allclose(compiled.features[place], plain.features[place], atol=1e-4)
    assert compiled.features["last"] is compiled.features[place]
    compiled.logits.sum().backward()
    assert model.parts["part"].factor.grad is not None
    again = model(images * 0.5)  # a second batch gives its own features, not those of the trace
    assert not torch.allclose(again.features[place], compiled.features[place])


def test_maps_of_a_tapped_feature_can_be_made_behind_a_compiled_forward():
    """First-order maps (no `create_graph`) work; second-order methods are refused before training starts."""
    from distilens.explain import build_explainer

    model = build_model("resnet8", CLASSES, (32, 32)).train()
    explainer = build_explainer("gradcam")
    model.tap(explainer.tap)
    images = torch.rand(4, 3, 32, 32)
    plain = explainer.from_output(model(images), create_graph=False)
    torch._dynamo.reset()
    model.network.compile(fullgraph=True, backend="aot_eager")
    found = explainer.from_output(model(images), create_graph=False)
    assert torch.allclose(found, plain, atol=1e-4)
