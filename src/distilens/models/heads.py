"""The heads of a network: the last layers, whose outputs make the logits. Some networks have two, and answer their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from distilens.core import Model
from distilens.errors import UserError
from distilens.model import logits_of
from distilens.taps import evaluating

LAYERS = (nn.Linear, nn.Conv2d)


def heads_of(network: nn.Module, pixels: Tensor) -> list[str]:
    """The paths of the layers behind which no other linear or convolutional layer stands on the way to the logits.

    They are found by a forward in eval mode, on whose graph we go back from the logits. Where there is no graph (a network
    under `no_grad`, scripted or quantised) the last layer in the order of definition is taken.

    Args:
        pixels: an image as the network takes it, normalised.

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
    found = {made[node] for node in nearest_nodes(logits.grad_fn, made)}
    heads = [path for module, path in paths.items() if path in found and width_of(module) == logits.shape[1]]
    if heads:
        return heads
    last = head_of(network)
    if width_of(network.get_submodule(last)) != logits.shape[1]:
        raise UserError(
            f"{type(network).__name__} gives {logits.shape[1]} logits, and none of its linear and convolutional layers does"
        )
    return [last]


def nearest_nodes(start: Any, wanted: dict[object, str]) -> set[object]:
    """The first of some nodes on each way back through a graph."""
    found: set[object] = set()
    waiting, known = [start], {start}
    while waiting:
        node = waiting.pop()
        if node in wanted:
            found.add(node)
            continue
        for before, _ in node.next_functions if node is not None else ():
            if before is not None and before not in known:
                known.add(before)
                waiting.append(before)
    return found


def heads(model: Model) -> list[str]:
    """The paths of a model's heads, in its network."""
    return heads_of(model.network, model.prepare(model.example()))


def width_of(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else cast(nn.Conv2d, layer).out_channels


def head_of(network: nn.Module) -> str:
    """The path of the last linear or convolutional layer in the order of definition: what most often gives the logits."""
    layers = [path for path, module in network.named_modules() if isinstance(module, LAYERS)]
    if not layers:
        raise UserError(f"{type(network).__name__} has no linear or convolutional layer that could be its head")
    return layers[-1]


def give_head(network: nn.Module, head: nn.Module) -> None:
    """Put another head into a network."""
    network.set_submodule(head_of(network), head)


def replace_heads(network: nn.Module, classes: int, paths: Sequence[str]) -> None:
    """Give a network fresh last layers for another number of classes; one for as many is left alone."""
    for path in paths:
        old = network.get_submodule(path)
        if width_of(old) != classes:
            network.set_submodule(path, fresh(old, classes))


def fresh(old: nn.Module, classes: int) -> nn.Module:
    """A layer as another one, for some number of classes, with weights of its own."""
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, classes, old.bias is not None)
    assert isinstance(old, nn.Conv2d)
    sides: dict[str, Any] = {"stride": old.stride, "padding": old.padding, "bias": old.bias is not None}
    return nn.Conv2d(old.in_channels, classes, cast(tuple[int, int], old.kernel_size), **sides)


@torch.no_grad()
def keep_classes(model: Model, positions: Sequence[int], names: Sequence[str]) -> None:
    """Keep some of the classes that a model answers for, in another order: the rows of its heads are moved.

    Raises:
        UserError: the logits are not the rows of its heads, so they cannot be put in order.
    """
    network, pixels = model.network, model.prepare(model.example())
    paths = heads_of(network, pixels)
    with evaluating(network):
        before = logits_of(network(pixels))[:, list(positions)]
    for path in paths:
        old = network.get_submodule(path)
        new = fresh(old, len(positions)).to(next(old.parameters()))
        for own, theirs in zip(new.parameters(), old.parameters(), strict=True):
            own.copy_(theirs[list(positions)])
        new.requires_grad_(next(old.parameters()).requires_grad)
        network.set_submodule(path, new)
    with evaluating(network):
        after = logits_of(network(pixels))
    if after.shape != before.shape or not torch.allclose(after, before, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"{model.name} answers for other classes than the data, or in another order, and its logits are not the rows of one "
            f"layer ({', '.join(paths)}), so they cannot be put in the data's order. Give it a new head and train it"
        )
    model.classes = tuple(names)
    config: Any = getattr(network, "config", None)
    if hasattr(config, "id2label"):  # what a Hugging Face model says of itself
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
