"""Folding: a faster copy of a model for answering and explaining, with batch norms folded into convolutions."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from distilens.models.model import Model
from distilens.models.taps import evaluating, find

Precision = Literal["float32", "bfloat16", "float16"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prepare(model: Model, *, precision: Precision = "float32", keep: Collection[str] = ()) -> Model:
    """A copy for teachers and evaluation: frozen, in eval mode, batch norms folded into convolutions, channels last.

    The logits are the same up to rounding (about 1 % in `bfloat16` and `float16`), and so are the features at every remaining
    tap. A folded convolution no longer has an output of its own; a tap at it, or at a container that ends in it, raises a
    `UserError`.

    Args:
        model: it is not changed.
        precision: of the weights and features; pixels, logits and maps stay float32.
        keep: taps at convolutions that must not be folded; existing taps of the model are always kept.
    """
    made = copy.deepcopy(model).eval().requires_grad_(False)
    # an inserted part reads the convolution's own output, so nothing may be moved across it
    tapped = {tap.path for tap in made.taps.values()}
    hooked = {path for path, module in made.network.named_modules() if len(module._forward_hooks)}
    folded = [candidate for candidate in foldable(made) if not candidate[2] & {*keep, *tapped, *hooked}]
    for convolution, norm, _ in folded:
        module, behind = find(made.network, convolution), find(made.network, norm)
        assert isinstance(module, CONVOLUTIONS) and isinstance(behind, nn.BatchNorm2d)
        made.network.set_submodule(convolution, fuse_conv_bn_eval(module, behind))
        extras = {name: getattr(behind, name) for name in ("drop", "act") if hasattr(behind, name)}
        after = nn.Sequential(OrderedDict(extras))  # `bn1.act` can still be tapped
        after._forward_hooks = behind._forward_hooks  # taps and parts at the norm stay in place
        after._forward_hooks_with_kwargs = behind._forward_hooks_with_kwargs
        after._forward_hooks_always_called = behind._forward_hooks_always_called
        made.network.set_submodule(norm, after.eval())
    made.folded = made.folded.union(*(places for _, _, places in folded))
    made._overwritten.clear()
    made.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision != "float32":
        made.precision = getattr(torch, precision)
        made.network.to(made.precision)
        made.parts.to(made.precision)
    return made


def foldable(model: Model) -> list[tuple[str, str, set[str]]]:
    """The paths of convolutions with a batch norm as the only reader of their output, found by a forward pass.

    Each entry has the convolution, the batch norm, and all modules that return the convolution's output (it, and containers
    that end in it). The graph shows whether something else also reads the output (a skip connection, a concatenation, an
    activation in place): the convolution's node must have one successor, and that must be the batch norm's.
    """
    seen: dict[nn.Module, tuple[Tensor, object]] = {}  # the output is kept, so that its id is not reused
    pairs: list[tuple[nn.Module, nn.Module]] = []
    made_by: dict[int, nn.Module] = {}
    returning: dict[nn.Module, set[nn.Module]] = {}
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        calls[module] = calls.get(module, 0) + 1
        if is_plain_convolution(module) and isinstance(output, Tensor):
            seen[module] = (output, output.grad_fn)  # its own node: a later change in place replaces `grad_fn`
            made_by[id(output)] = module
            returning[module] = {module}
        elif isinstance(output, Tensor) and id(output) in made_by:
            returning[made_by[id(output)]].add(module)
        elif is_plain_norm(module) and id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])], module))

    handles = [module.register_forward_hook(note, prepend=True) for module in model.network.modules()]
    with evaluating(model), torch.enable_grad():
        try:
            logits = model.logits(model.example().requires_grad_())
        finally:
            for handle in handles:
                handle.remove()
    readers = successors(logits)
    named: dict[nn.Module, list[str]] = {}
    for path, module in model.network.named_modules(remove_duplicate=False):
        named.setdefault(module, []).append(path)
    return [
        (named[convolution][0], named[norm][0], {path for module in returning[convolution] for path in named[module]})
        for convolution, norm in pairs
        if calls[convolution] == calls[norm] == 1
        and len(named[convolution]) == len(named[norm]) == 1  # under a second name the old module would remain
        and ["BatchNorm" in type(node).__name__ for node in readers.get(seen[convolution][1], ())] == [True]
    ]


def is_plain_convolution(module: nn.Module) -> bool:
    """Whether a convolution uses its weight directly: it is not a subclass that changes the weight, and not parametrised.

    Weight standardisation (in timm and in papers) would undo the scale of a folded batch norm.
    """
    plain = type(module).__name__ == "Conv2dSame" or any(
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and type(module)._conv_forward is kind._conv_forward
        for kind in CONVOLUTIONS
    )
    return plain and not is_parametrized(module) and not module._forward_pre_hooks


def is_plain_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm with running statistics; timm's batch norm with an activation counts too."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None or module._forward_pre_hooks:
        return False
    return type(module) is nn.BatchNorm2d or (type(module).__name__ == "BatchNormAct2d" and hasattr(module, "act"))


def successors(logits: Tensor) -> dict[object, list[object]]:
    """For each node of the graph, the nodes that read its result."""
    readers: dict[object, list[object]] = {}
    waiting, known = [logits.grad_fn], {logits.grad_fn}
    while waiting:
        node = waiting.pop()
        for before, _ in node.next_functions if node is not None else ():
            readers.setdefault(before, []).append(node)
            if before is not None and before not in known:
                known.add(before)
                waiting.append(before)
    return readers
