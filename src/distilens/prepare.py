"""A model made ready to answer and be explained, not trained: the same function, computed with less."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from distilens.model import Model
from distilens.taps import evaluating, find

Precision = Literal["float32", "bfloat16", "float16"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prepare(model: Model, *, precision: Precision = "float32", keep: Collection[str] = ()) -> Model:
    """A copy for teachers and evaluation: frozen, in eval mode, batch norms folded into convolutions, channels last.

    The logits are the same to rounding (in `bfloat16` and `float16`: to about 1 %), and so are the features at every tap that
    is left; a convolution that took up its batch norm has no output of its own any more, and tapping it, or what ends in it,
    says so.

    Args:
        model: left as it is.
        precision: of the weights and features; pixels, logits and maps stay float32.
        keep: taps at convolutions that are not to be folded; those that the model has already are kept anyway.
    """
    made = copy.deepcopy(model).eval().requires_grad_(False)
    # a part stands behind the convolution's own output, so nothing may be moved across it
    tapped = {tap.path for tap in made.taps.values()}
    hooked = {path for path, module in made.network.named_modules() if len(module._forward_hooks)}
    folded = [found for found in foldable(made) if not found[2] & {*keep, *tapped, *hooked}]
    for convolution, norm, _ in folded:
        module, behind = find(made.network, convolution), find(made.network, norm)
        assert isinstance(module, CONVOLUTIONS) and isinstance(behind, nn.BatchNorm2d)
        made.network.set_submodule(convolution, fuse_conv_bn_eval(module, behind))
        kept = {name: getattr(behind, name) for name in ("drop", "act") if hasattr(behind, name)}
        after = nn.Sequential(OrderedDict(kept))  # `bn1.act` is still there to be tapped
        after._forward_hooks = behind._forward_hooks  # taps and parts at the norm stay where they are
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
    """Paths of convolutions and of the batch norms that alone read their output, found by a forward.

    With them come the paths of all modules that return that output: the convolution, and containers that end in it.
    Whether something else reads it too (a skip connection, a concatenation, an activation in place) is asked of the graph:
    the convolution's node must have one successor, and that must be the batch norm's.
    """
    seen: dict[nn.Module, tuple[Tensor, object]] = {}  # the output is kept, so that its id stays its own
    pairs: list[tuple[nn.Module, nn.Module]] = []
    made_by: dict[int, nn.Module] = {}
    returning: dict[nn.Module, set[nn.Module]] = {}
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        calls[module] = calls.get(module, 0) + 1
        if is_plain_convolution(module) and isinstance(output, Tensor):
            seen[module] = (output, output.grad_fn)  # its own node: a later change in place puts another one there
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
        and len(named[convolution]) == len(named[norm]) == 1  # under a second name the old module would live on
        and ["BatchNorm" in type(node).__name__ for node in readers.get(seen[convolution][1], ())] == [True]
    ]


def is_plain_convolution(module: nn.Module) -> bool:
    """A convolution that is its weight: no subclass that makes another one of it first, and no parametrisation.

    timm's and the papers' weight standardisation would undo the scale of a folded batch norm.
    """
    plain = type(module).__name__ == "Conv2dSame" or any(
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and type(module)._conv_forward is kind._conv_forward
        for kind in CONVOLUTIONS
    )
    return plain and not is_parametrized(module) and not module._forward_pre_hooks


def is_plain_norm(module: nn.Module) -> bool:
    """A batch norm with statistics of its own; timm's, with an activation behind it, counts too."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None or module._forward_pre_hooks:
        return False
    return type(module) is nn.BatchNorm2d or (type(module).__name__ == "BatchNormAct2d" and hasattr(module, "act"))


def successors(logits: Tensor) -> dict[object, list[object]]:
    """The nodes of the graph that read each node's result."""
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
