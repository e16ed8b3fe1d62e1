"""The student's forward is one graph, whatever is tapped and inserted.

Run in a process of its own: the checks of shapes that the tests install in every annotated function cannot be traced.
"""

import os
import subprocess
import sys

import pytest

from distilens.core import Objective, with_terms
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.training.balance import BALANCES
from distilens.training.loop import compile_student

PROGRAM = """
import torch
from torch import nn

from distilens.models import build_model

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, feature, inputs):
        return feature * self.factor

torch.manual_seed(0)
images = torch.rand(4, 3, 32, 32)
for name in ("resnet8", "mobilenetv2", "vgg8", "wrn-16-1", "shrink:blocks=9"):
    model = build_model(name, tuple("abcd"), (32, 32)).eval()
    place = model.tap("last")
    model.insert(place, Scaled(), name="part")
    plain = model(images)
    torch._dynamo.reset()
    # fullgraph raises where a graph would break; aot_eager traces forward and backward as the real backend does
    model.network.compile(fullgraph=True, backend="aot_eager")
    compiled = model(images)
    assert torch.allclose(compiled.logits, plain.logits, atol=1e-4), name
    assert torch.allclose(compiled.features[place], plain.features[place], atol=1e-4), name
    assert compiled.features["last"] is compiled.features[place], name
    compiled.logits.sum().backward()
    assert model.parts["part"].factor.grad is not None, name
    again = model(images * 0.5)  # a second batch gives its own features, not those of the trace
    assert not torch.equal(again.features[place], compiled.features[place]), name
    print("one graph:", name)

"""


@pytest.mark.slow
def test_a_tapped_student_with_a_part_compiles_without_a_graph_break():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("one graph") == 5


BALANCED = """
import sys
from pathlib import Path

import torch

from distilens.data import load
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.training.log import Log
from distilens.training.settings import Training
from distilens.teachers import LiveTeacher
from distilens.training.loop import train

data = load("shapes:train=64,test=40,size=16", Path(sys.argv[1]))
parts = ["ce", "kd", "fitnet", "opdf", "powerprop"]
losses = []
for compiled in (False, True, "graphs"):
    torch.manual_seed(0)
    teacher = LiveTeacher(build_model("resnet14", data.classes, data.size))
    student, log = build_model("resnet8", data.classes, data.size), Log()
    settings = Training(
        epochs=1, batch_size=16, compile=compiled, precision="float32", balance="ratio:0.3,every=2", log_every=1,
        optimizer="sgd:lr=0.01",
    )
    train(student, build_methods(parts), data, settings, teacher=teacher, log=log)
    losses.append(torch.tensor([row["loss"] for row in log.rows if "terms" in row]))
assert all(torch.allclose(losses[0], each, rtol=1e-3) for each in losses), losses
print("as if it were not compiled")
"""


@pytest.mark.slow
def test_a_compiled_student_is_trained_in_balance_and_with_weights_in_another_form(tmp_path):
    """Measuring gradients goes through the graph more than once, which compiled graphs do not allow by default."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BALANCED, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "as if it were not compiled" in done.stdout


@pytest.mark.parametrize(("balance", "kept"), [("fixed", True), ("ratio:0.3", False)])
@pytest.mark.parametrize(("graphs", "mode"), [(True, "reduce-overhead"), (False, None)])
def test_a_balance_keeps_the_buffers_of_the_graph(monkeypatch, balance, kept, graphs, mode):
    """It runs backward more than once."""
    from torch._functorch import config

    methods = build_methods(["ce", "kd"])
    model = build_model("resnet8", ("a", "b"), (16, 16))
    compiled = []
    monkeypatch.setattr(model.network, "compile", lambda **options: compiled.append(options))
    with config.patch(donated_buffer=True):
        compile_student(Objective(model, methods, BALANCES.build(balance, with_terms(methods))), graphs=graphs)
        assert config.donated_buffer is kept
    assert compiled == [{"mode": mode}]


def test_a_method_with_second_derivatives_cannot_be_compiled():
    model = build_model("resnet8", ("a", "b"), (16, 16))
    methods = build_methods(["ce", "map_match:explainer=gradcam"])
    with pytest.raises(UserError, match="compile=true cannot be used with map_match"):
        compile_student(Objective(model, methods))
