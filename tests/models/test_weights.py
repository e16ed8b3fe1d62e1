"""Weight files as other people's training scripts leave them: each is read, and what went where is said."""

import argparse
import re

import numpy as np
import pytest
import torch

from distilens.foundation.errors import UserError
from distilens.models import build_model

CLASSES = tuple("abc")


@pytest.fixture
def state():
    torch.manual_seed(0)
    return build_model("resnet8", CLASSES, (32, 32)).network.state_dict()


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def zeros(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


FILES = {
    "plain": (lambda s: s, ""),
    "net": (lambda s: {"net": s, "acc": 91.2, "epoch": 3}, ""),
    "net_module": (lambda s: {"net": prefixed("module.", s), "acc": 91.2}, r"prefix 'module.'"),
    "compiled": (lambda s: prefixed("_orig_mod.", s), r"prefix '_orig_mod.'"),
    "ddp_compiled": (lambda s: {"model": prefixed("module._orig_mod.", s)}, r"prefix 'module._orig_mod.'"),
    "lightning": (lambda s: {"state_dict": prefixed("model.", s), "global_step": 3}, r"prefix 'model.'"),
    "distiller": (
        lambda s: {"model": prefixed("module.student.", s) | prefixed("module.teacher.", {"x.weight": torch.ones(2)})},
        r"prefix 'module.student.'.*1 tensors .* left out: module.teacher.x.weight",
    ),
    "ema": (
        lambda s: {"state_dict": zeros(s), "state_dict_ema": s},
        "the averaged weights 'state_dict_ema' are used",
    ),
    "nested": (lambda s: {"checkpoint": 1, "state_dict": {"net": s, "n": 3}}, ""),
    "old": (lambda s: {key: value for key, value in s.items() if "num_batches_tracked" not in key}, ""),
    "numpy scalar": (lambda s: {"model": s, "best_acc": np.float64(91.2), "epoch": np.int64(3)}, ""),
    "numpy array": (lambda s: {"model": s, "curve": np.arange(3.0)}, ""),
    "namespace": (lambda s: {"model": s, "opt": argparse.Namespace(lr=0.1, decay=[1, 2])}, ""),
    "half": (lambda s: {key: value.half() if value.is_floating_point() else value for key, value in s.items()}, ""),
    "extra buffer": (
        lambda s: s | {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)},
        "2 tensors in the file do not belong to the network and were left out: total_ops, layer1.total_params",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_loads_and_what_was_done_is_said(tmp_path, state, name):
    write, said = FILES[name]
    torch.save(write(state), tmp_path / "weights.pth")
    model = build_model(f"file:{tmp_path / 'weights.pth'},model=resnet8", CLASSES, (32, 32))
    for key, value in model.network.state_dict().items():
        tolerance = 1e-2 if name == "half" else 0
        if not (name == "old" and "num_batches_tracked" in key):
            assert torch.allclose(value, state[key], atol=tolerance), key
    assert model.loaded
    notes = " ".join(model.notes)
    assert re.search(said, notes), notes


def test_missing_weights_are_refused_whatever_else_fits(tmp_path, state):
    del state["fc.weight"]
    torch.save({"net": prefixed("module.", state)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"are not those of resnet8: missing: fc\.weight"):
        build_model(f"file:{tmp_path / 'weights.pth'},model=resnet8", CLASSES, (32, 32))


def test_a_file_without_weights_says_what_it_has(tmp_path):
    torch.save({"epoch": 3, "config": {"lr": 0.1}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="has no state dict: expected names with tensors: it has epoch, config"):
        build_model(f"file:{tmp_path / 'weights.pth'},model=resnet8", CLASSES, (32, 32))


class Harmful:
    def __reduce__(self):
        return (print, ("this must not be run",))


def test_code_is_not_run(tmp_path, state, capsys):
    torch.save({"model": state, "extra": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="reading it would run code from the file"):
        build_model(f"file:{tmp_path / 'weights.pth'},model=resnet8", CLASSES, (32, 32))
    assert "must not be run" not in capsys.readouterr().out


def test_weights_of_another_network_are_named_as_in_the_file(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"module.encoder.weight": torch.ones(2), "module.encoder.bias": torch.ones(2)}, path)
    with pytest.raises(UserError, match=r"unknown: module\.encoder\.weight, module\.encoder\.bias"):
        build_model(f"file:{path},model=resnet8", CLASSES, (32, 32))
