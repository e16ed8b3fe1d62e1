"""The heads of a network: the last layers, which give the logits. Some networks have two and return their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from distilens.foundation.errors import UserError
from distilens.models.model import Model, logits_of
from distilens.models.taps import evaluating

LAYERS = (nn.Linear, nn.Conv2d)


def heads_of(network: nn.Module, pixels: Tensor) -> list[str]:
    """The paths of the layers with no other linear or convolutional layer between them and the logits.

    A forward pass in eval mode gives a graph, which is followed back from the logits. If there is no graph (a network under
    `no_grad`, scripted or quantised), the last layer in the order of definition is taken.

    Args:
        pixels: a normalised image of the network's input size.

    Raises:
        UserError: the network has no such layer.
    """
    paths: dict[nn.Module, str] = {
        module: path for path, module in network.named_modules() if isinstance(module, LAYERS)
    }
    made: dict[object, str] = {}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            made[output.grad_fn] = paths[module]

    handles = [module.register_forward_hook(note, prepend=True) for module in paths]
    with evaluating(network), torch.enable_grad():
        try:
            logits = logits_of(network(pixels.detach().clone().requires_grad_()))
        finally:
            for handle in handles:
                handle.remove()
    last_layers = {made[node] for node in nearest_nodes(logits.grad_fn, made)}
    heads = [path for module, path in paths.items() if path in last_layers and width_of(module) == logits.shape[1]]
    if heads:
        return heads
    last = head_of(network)
    if width_of(network.get_submodule(last)) != logits.shape[1]:
        raise UserError(
            f"{type(network).__name__} gives {logits.shape[1]} logits, but none of its linear and convolutional layers does"
        )
    return [last]


def nearest_nodes(start: Any, names: dict[object, str]) -> set[object]:
    """The first node in `names` on each path back through a graph."""
    nearest: set[object] = set()
    waiting, known = [start], {start}
    while waiting:
        node = waiting.pop()
        if node in names:
            nearest.add(node)
            continue
        for before, _ in node.next_functions if node is not None else ():
            if before is not None and before not in known:
                known.add(before)
                waiting.append(before)
    return nearest


def heads(model: Model) -> list[str]:
    """The paths of a model's heads, in its network."""
    return heads_of(model.network, model.prepare(model.example()))


def width_of(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else cast(nn.Conv2d, layer).out_channels


def head_of(network: nn.Module) -> str:
    """The path of the last linear or convolutional layer in the order of definition, which is usually the head."""
    layers = [path for path, module in network.named_modules() if isinstance(module, LAYERS)]
    if not layers:
        raise UserError(f"{type(network).__name__} has no linear or convolutional layer that could be its head")
    return layers[-1]


def give_head(network: nn.Module, head: nn.Module) -> None:
    """Replace the head of a network."""
    network.set_submodule(head_of(network), head)


def replace_heads(network: nn.Module, classes: int, paths: Sequence[str]) -> None:
    """Replace the layers at the given paths by new ones for `classes` classes; a layer with this width is not changed."""
    for path in paths:
        old = network.get_submodule(path)
        if width_of(old) != classes:
            network.set_submodule(path, make_layer(old, classes))


def make_layer(old: nn.Module, classes: int) -> nn.Module:
    """A new layer like an old one, for the given number of classes, with new weights."""
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, classes, old.bias is not None)
    assert isinstance(old, nn.Conv2d)
    sides: dict[str, Any] = {"stride": old.stride, "padding": old.padding, "bias": old.bias is not None}
    sides |= {"dilation": old.dilation, "padding_mode": old.padding_mode}
    return nn.Conv2d(old.in_channels, classes, cast(tuple[int, int], old.kernel_size), **sides)


@torch.no_grad()
def keep_classes(model: Model, positions: Sequence[int], names: Sequence[str]) -> None:
    """Select and reorder a model's classes by moving the rows of its heads.

    Raises:
        UserError: the logits are not the rows of the heads, so they cannot be reordered.
    """
    network, pixels = model.network, model.prepare(model.example())
    paths = heads_of(network, pixels)
    with evaluating(network):
        before = logits_of(network(pixels))[:, list(positions)]
    for path in paths:
        old = network.get_submodule(path)
        new = make_layer(old, len(positions)).to(next(old.parameters()))
        for own, theirs in zip(new.parameters(), old.parameters(), strict=True):
            own.copy_(theirs[list(positions)])
        new.requires_grad_(next(old.parameters()).requires_grad)
        network.set_submodule(path, new)
    with evaluating(network):
        after = logits_of(network(pixels))
    if after.shape != before.shape or not torch.allclose(after, before, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"{model.name} has other classes than the data, or another order, and its logits are not the rows of one layer "
            f"({', '.join(paths)}), so they cannot be put in the data's order. Give it a new head and train it"
        )
    model.classes = tuple(names)
    config: Any = getattr(network, "config", None)
    if hasattr(config, "id2label"):  # the class names of a Hugging Face model
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
