"""Weight files as other people's training scripts leave them: each is read, and what went where is said."""

import argparse
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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


def renamed(state):
    """The same tensors in the same order under names that share nothing with the network's."""
    modules = {name: f"m{number}" for number, name in enumerate(dict.fromkeys(key.rpartition(".")[0] for key in state))}
    return {f"{modules[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}


@pytest.mark.parametrize("write", [renamed, lambda s: {"ema": prefixed("module.", renamed(s))}])
def test_other_names_are_matched_by_order(tmp_path, state, write):
    path = tmp_path / "w.pt"
    torch.save(write(state), path)
    with pytest.raises(UserError, match=r"All tensors fit by their order and shape.*match=order takes them so"):
        build_model(f"file:{path},model=resnet8", CLASSES, (32, 32))
    model = build_model(f"file:{path},model=resnet8,match=order", CLASSES, (32, 32))
    assert all(torch.equal(value, state[key]) for key, value in model.network.state_dict().items())
    assert model.loaded
    assert not model.missing
    assert [*model.matched.values()][:2] == ["conv1", "bn1"]
    assert "matched by order and shape" in " ".join(model.notes)


def swapped(state):
    """Two neighbours of equal shape in the other order."""
    keys = list(state)
    at = keys.index("bn1.weight")
    keys[at], keys[at + 1] = keys[at + 1], keys[at]
    return {key: state[key] for key in keys}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (swapped, r"tensor 2 of .* is bn1.bias \[16\], but that of the network is bn1.weight"),
        (
            lambda s: {"more": torch.ones(3), **s},
            r"tensor 1 of .* is more \[3\], but that of the network is conv1.weight",
        ),
        (lambda s: {**s, "more": torch.ones(3)}, r"has 48 tensors, the network has 47.*goes on with more"),
        (lambda s: {key: s[key] for key in list(s)[:-1]}, r"the network has .*; the network goes on with fc.bias"),
    ],
)
def test_another_order_is_refused(tmp_path, state, write, said):
    torch.save(write(state), tmp_path / "w.pt")
    with pytest.raises(UserError, match=said):
        build_model(f"file:{tmp_path / 'w.pt'},model=resnet8,match=order", CLASSES, (32, 32))


def test_a_safetensors_file_has_no_order(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="a safetensors file, which sorts its tensors"):
        build_model(f"file:{tmp_path / 'w.safetensors'},model=resnet8,match=order", CLASSES, (32, 32))


@pytest.mark.parametrize("match", ["name", "order"])
def test_the_head_of_other_classes_is_not_loaded(tmp_path, state, match):
    torch.save(state, tmp_path / "w.pt")
    model = build_model(f"file:{tmp_path / 'w.pt'},model=resnet8,match={match}", tuple("abcde"), (32, 32))
    own = model.network.state_dict()
    assert model.missing == ("fc",)
    assert own["fc.weight"].shape == (5, 64)
    assert torch.equal(own["conv1.weight"], state["conv1.weight"])


def thousand(path):
    """A weight file of a network with ImageNet's classes."""
    torch.manual_seed(0)
    network = build_model("resnet8", tuple(map(str, range(1000))), (32, 32)).network
    torch.save(renamed(network.state_dict()), path)
    return network.eval()


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("imagenet", ("English springer", "tench")),
        ("imagenet", ("n02102040", "n01440764")),
        ("[217,0]", ("dog", "fish")),
        ("[n02102040,n01440764]", ("dog", "fish")),
        ("[english_springer,tench]", ("dog", "fish")),
    ],
)
def test_outputs_of_a_larger_head_answer_for_the_datas_classes(tmp_path, asked, names):
    network = thousand(tmp_path / "w.pt")
    notation = f"file:{tmp_path / 'w.pt'},model=resnet8,match=order,classes={asked}"
    model = build_model(notation, names, (32, 32)).eval()
    assert model.classes == names
    assert not model.missing
    pixels = model.prepare(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(model.network(pixels), network(pixels)[:, [217, 0]])
    assert f"of its 1000 outputs it answers with {names[0]}: 217, {names[1]}: 0" in " ".join(model.notes)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("[217,0,1]", "classes= names 3 outputs, but the data has 2 classes: dog, fish"),
        ("[217,1000]", "the weights have no output for 1000; they have 1000"),
        ("[217,a fish]", "the weights have no output for a fish"),
        ("[217,217]", "classes= names the output of 217, 217 more than once"),
        ("imagenet", "the weights have no output for dog, fish"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(tmp_path, asked, said):
    thousand(tmp_path / "w.pt")
    with pytest.raises(UserError, match=re.escape(said)):
        build_model(f"file:{tmp_path / 'w.pt'},model=resnet8,match=order,classes={asked}", ("dog", "fish"), (32, 32))


def test_names_need_a_thousand_classes(tmp_path, state):
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match="has 3 classes without names, and they are not ImageNet's 1,000"):
        build_model(f"file:{tmp_path / 'w.pt'},model=resnet8,classes=imagenet", ("a", "b"), (32, 32))
