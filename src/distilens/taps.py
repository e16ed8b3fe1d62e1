"""Features of unmodified models: a tap keeps what a module returns, for one forward.

A tap is a bound method, installed once as a forward hook; its buffer is emptied by the forward that filled it. So it survives
`deepcopy`, adds no graph break under `torch.compile`, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn

from distilens.errors import UserError, nearest

INPUT = "input"  # the tap of the images themselves
LAST = "last"  # the notation for the last feature map; `last-1` is the last one of the next finer grid, and so on


class Tap:
    """What one module returns, kept for whoever ran the forward.

    Attributes:
        path: dotted module path, such as `layer3`.
        overwritten: the model changes this feature in place after the tapped module (an in-place ReLU, `out += x`); then
            the model is handed a copy and the tap keeps the original.
        cut: the feature starts a new graph, unless another tap has started it before: what comes before is not recorded,
            what comes after is (see `cutting`). The tap of the images always starts one, so that they have a gradient.
    """

    def __init__(self, path: str, overwritten: bool = False):
        self.path = path
        self.overwritten = overwritten
        self.cut = False
        self.value: Tensor | None = None

    def keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """The forward hook."""
        starts = self.cut and not (torch.is_grad_enabled() and output.requires_grad)
        if starts:
            torch.set_grad_enabled(True)  # the trunk ran without a graph; `cutting` puts the caller's state back
        if starts or (self.path == INPUT and torch.is_grad_enabled() and not output.requires_grad):
            output = output.detach().requires_grad_()
        self.value = output
        return output.clone() if self.overwritten else output

    def __getstate__(self) -> dict:
        """A copy, or a pickle, starts with an empty buffer: a feature inside a graph cannot be copied."""
        return {**self.__dict__, "value": None}

    def take(self) -> Tensor:
        """The feature, and an empty buffer."""
        value, self.value = self.value, None
        if value is None:
            raise UserError(f"the tap {self.path!r} saw no forward: the model did not call that module")
        return value


@contextlib.contextmanager
def cutting(*taps: Tap) -> Iterator[None]:
    """Run the trunk before the first of some taps without a graph, and record only what is behind it.

    So Grad-CAM at the last stage costs a forward. The forward may reach the taps in any order.
    """
    before = torch.is_grad_enabled()
    for tap in taps:
        tap.cut = True
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        for tap in taps:
            tap.cut, tap.value = False, None
        torch.set_grad_enabled(before)


def grid(feature: Tensor, size: tuple[int, int] = (1, 1)) -> Tensor:
    """Any spatial feature as `[b c h w]`: NCHW as it is, NHWC permuted, ViT tokens `[b n c]` without their prefix.

    Works on features and on their gradients alike, so an explainer may differentiate the raw feature and read both as maps.

    Args:
        size: height and width of the network's input, of which the proportion alone counts: it tells which axes are places.

    Raises:
        UserError: the feature has no spatial extent, or one place only.
    """
    shape = tuple(feature.shape)
    if feature.ndim == 4:
        if shape[2:] == (1, 1) or shape[1:3] == (1, 1):
            raise UserError(f"a feature of shape {list(shape)} has one place only: tap a layer before the pooling")
        channels_last = distorted(shape[1], shape[2], size) < distorted(shape[2], shape[3], size)
        return feature.permute(0, 3, 1, 2) if channels_last else feature
    if feature.ndim == 3 and shape[2] > 1:  # of one channel it is no token: pooled channels, `[b c 1]`
        for prefix in range(min(shape[1], 9)):  # class, distillation and register tokens come first
            height = round(math.sqrt((shape[1] - prefix) * size[0] / size[1]))
            width = (shape[1] - prefix) // max(1, height)
            if height * width == shape[1] - prefix > 1 and height * size[1] == width * size[0]:
                return feature[:, prefix:].transpose(1, 2).reshape(shape[0], shape[2], height, width)
    raise UserError(
        f"a feature of shape {list(shape)} has no spatial extent: tap a layer that gives [b c h w] or tokens"
    )


def distorted(height: int, width: int, size: tuple[int, int]) -> float:
    """How far a grid's proportion is from the image's: 0 where it is the same."""
    return abs(math.log(height * size[1] / (width * size[0]))) if height and width else math.inf


def is_spatial(feature: object, size: tuple[int, int] = (1, 1)) -> TypeGuard[Tensor]:
    """Whether `grid` can read a module's output and there is more than one place in it."""
    if not isinstance(feature, Tensor) or not feature.is_floating_point():
        return False
    try:
        return math.prod(grid(feature, size).shape[2:]) > 1
    except UserError:
        return False


def find(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path.

    Raises:
        UserError: no such module; the nearest name and those that exist are named.
    """
    if path:
        with contextlib.suppress(AttributeError):
            return model.get_submodule(path)
    known = [name for name, _ in model.named_modules() if name]
    shallow = [name for name in known if name.count(".") == 0]
    raise UserError(
        f"no tap {path!r} in this {type(model).__name__}.{nearest(path, known)} "
        f"Taps: {INPUT}, {LAST}, {', '.join(shallow)} and the modules inside them"
    )


def observe(model: nn.Module, images: Tensor) -> dict[str, tuple[object, bool]]:
    """Every module's output in one forward, in order: path -> (output, whether the model overwrote it in place later).

    The forward runs in eval mode on a graph of its own, and leaves no trace in the model. The model's own output stands
    under the empty path. A weight that is zero everywhere, as heads of ViTs start, gets other values for this forward, so
    that gradients say what the logits depend on.
    """
    seen: dict[str, list[tuple[object, int]]] = {}
    paths = {module: path for path, module in model.named_modules()}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        earlier = seen.pop(
            paths[module], []
        )  # a module that is called again moves to the end, and is asked for each call
        seen[paths[module]] = [*earlier, (output, output._version if isinstance(output, Tensor) else 0)]

    # first in line, as taps are: what the module itself returned, not what an inserted part made of it
    handles = [module.register_forward_hook(note, prepend=True) for module in paths]
    with evaluating(model), torch.enable_grad():
        try:
            torch.func.functional_call(model, filled(model), (images.detach().requires_grad_().clone(),))
        finally:
            for handle in handles:
                handle.remove()
    return {
        path: (calls[-1][0], any(isinstance(output, Tensor) and output._version != old for output, old in calls))
        for path, calls in seen.items()
    }


def filled(model: nn.Module) -> dict[str, Tensor]:
    """Other values, always the same, for the weights that are zero everywhere, by name."""
    empty = {
        name: weight
        for name, weight in model.named_parameters()
        if (weight.ndim > 1 or not name.endswith("bias")) and not weight.any()
    }
    return {
        name: torch.arange(weight.numel(), device=weight.device).cos().to(weight.dtype).view_as(weight) / 10
        for name, weight in empty.items()
    }


def last_spatial(seen: dict[str, tuple[object, bool]], logits: Tensor, size: tuple[int, int] = (1, 1)) -> str:
    """The default tap: the outermost module that returns the last feature map that the logits depend on everywhere.

    In a CNN that is the last stage. In a ViT whose head reads the class token alone, the patches behind the last attention
    have no gradient, so it is the input of that attention (`blocks.11.norm1`).

    Raises:
        UserError: no module returns a feature map.
    """
    spatial = {path: output for path, (output, _) in seen.items() if path and is_spatial(output, size)}
    if not spatial:
        raise UserError("no module of this model returns a feature map: name a tap")
    final = list(spatial)[-1]
    alike = [path for path in reversed(spatial) if spatial[path].shape == spatial[final].shape]
    last = next((path for path in alike if has_gradient(logits, spatial[path], size)), final)
    # A container returns what its last child returns: name the container, `layer3` rather than `layer3.2.relu`.
    parents = [path for path in alike if last.startswith(path + ".") and spatial[path] is spatial[last]]
    return min([*parents, last], key=len)


def finer_spatial(seen: dict[str, tuple[object, bool]], last: str, steps: int, size: tuple[int, int] = (1, 1)) -> str:
    """The tap `last-1`, `last-2`, ...: the last feature map of the grid that is so many sizes finer than the last tap's.

    Of the modules that return such a map it is the one that is nested least, for inside a block a feature is no result yet;
    of several of those the last.

    Raises:
        UserError: the model has fewer grids.
    """
    places = {
        path: math.prod(grid(output, size).shape[2:])
        for path, (output, _) in seen.items()
        if path and is_spatial(output, size)
    }
    finer = sorted({count for count in places.values() if count > places[last]})
    if steps > len(finer):
        raise UserError(
            f"no tap '{LAST}-{steps}': this model has {len(finer) + 1} sizes of feature maps, so {LAST} to "
            f"{LAST}-{len(finer)}"
            if finer
            else f"no tap '{LAST}-{steps}': this model's feature maps are of one size"
        )
    before = list(places)[: list(places).index(last)]
    alike = [path for path in before if places[path] == finer[steps - 1]]
    return min(reversed(alike), key=lambda path: path.count("."))


def has_gradient(logits: Tensor, feature: Tensor, size: tuple[int, int]) -> bool:
    """Whether the logits depend on more than one place of a feature map."""
    if not feature.requires_grad:
        return False
    with torch.enable_grad():
        score = logits.float().square().sum()
    (gradient,) = torch.autograd.grad(score, feature, retain_graph=True, allow_unused=True)
    return gradient is not None and int(grid(gradient, size).abs().sum(1).count_nonzero()) > 1


def breaks_gradient(model: nn.Module, images: Tensor) -> str | None:
    """The path of the first module that takes a feature with a gradient and returns one without, if there is any."""
    broken: list[str] = []
    paths = {module: path for path, module in model.named_modules() if path and not any(module.children())}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        given = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
        if given and isinstance(output, Tensor) and not output.requires_grad:
            broken.append(f"{paths[module]} ({type(module).__name__})")

    handles = [module.register_forward_hook(note) for module in paths]
    with evaluating(model), torch.enable_grad():
        try:
            model(images.detach().requires_grad_().clone())
        finally:
            for handle in handles:
                handle.remove()
    return broken[0] if broken else None


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within, each module's own mode afterwards.

    The flags alone are changed: a module whose `train()` does more (merges weights, for example) is left as it is.
    """
    training, waiting = [], [model]
    while waiting:  # not `modules()`, which takes a twentieth of a small network's forward
        module = waiting.pop()
        if module.training:
            training.append(module)
        waiting += [child for child in module._modules.values() if child is not None]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
