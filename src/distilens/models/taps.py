"""Taps: features of unmodified models. A tap stores the output of a module during one forward pass.

A tap is a bound method, installed once as a forward hook. Its buffer is emptied by the same forward pass that filled it. So it
survives `deepcopy`, adds no graph break under `torch.compile`, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn

from distilens.foundation.errors import UserError, nearest

INPUT = "input"  # the tap of the images themselves
COARSEST = "coarsest"  # the notation for the last feature map of the coarsest grid
LAST = "last"  # the notation for the last feature map; `last-1` is the last one of the next finer grid, and so on


class Tap:
    """The output of one module, stored for the caller of the forward pass.

    Attributes:
        path: dotted module path, such as `layer3`.
        overwritten: whether the model changes this feature in place after the tapped module (an in-place ReLU, `out += x`);
            then the model gets a copy and the tap keeps the original.
        cut: whether the feature starts a new graph, unless another tap has already started one: only operations behind the
            tap are recorded (see `cutting`). The tap of the images always starts a graph, so that they have a gradient.
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
            torch.set_grad_enabled(True)  # the trunk ran without a graph; `cutting` restores the caller's state
        if starts or (self.path == INPUT and torch.is_grad_enabled() and not output.requires_grad):
            output = output.detach().requires_grad_()
        self.value = output
        return output.clone() if self.overwritten else output

    def __getstate__(self) -> dict:
        """A copy, or a pickle, starts with an empty buffer: a feature inside a graph cannot be copied."""
        return {**self.__dict__, "value": None}

    def take(self) -> Tensor:
        """Return the feature and empty the buffer."""
        value, self.value = self.value, None
        if value is None:
            raise UserError(f"the tap {self.path!r} is empty: the model did not call that module")
        return value


@contextlib.contextmanager
def cutting(*taps: Tap) -> Iterator[None]:
    """Record the graph only behind the first of the given taps; the trunk before it runs without a graph.

    So Grad-CAM at the last stage costs little more than a forward pass. The taps may be reached in any order.
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
    """Any spatial feature as `[b c h w]`: NCHW unchanged, NHWC permuted, ViT tokens `[b n c]` without their prefix.

    Works for features and for their gradients, so an explainer can differentiate the raw feature and read both as maps.

    Args:
        size: height and width of the network's input; only the aspect ratio matters: it tells which axes are spatial.

    Raises:
        UserError: the feature has no spatial extent, or only one place.
    """
    shape = tuple(feature.shape)
    if feature.ndim == 4:
        if shape[2:] == (1, 1) or shape[1:3] == (1, 1):
            raise UserError(f"a feature of shape {list(shape)} has only one place: tap a layer before the pooling")
        channels_last = distortion(shape[1], shape[2], size) < distortion(shape[2], shape[3], size)
        return feature.permute(0, 3, 1, 2) if channels_last else feature
    if feature.ndim == 3 and shape[2] > 1:  # `[b c 1]` are pooled channels, not tokens
        for prefix in range(min(shape[1], 9)):  # class, distillation and register tokens come first
            height = round(math.sqrt((shape[1] - prefix) * size[0] / size[1]))
            width = (shape[1] - prefix) // max(1, height)
            if height * width == shape[1] - prefix > 1 and height * size[1] == width * size[0]:
                return feature[:, prefix:].transpose(1, 2).reshape(shape[0], shape[2], height, width)
    raise UserError(
        f"a feature of shape {list(shape)} has no spatial extent: tap a layer that gives [b c h w] or tokens"
    )


def distortion(height: int, width: int, size: tuple[int, int]) -> float:
    """The difference of a grid's aspect ratio from the image's, as an absolute log ratio: 0 if equal."""
    return abs(math.log(height * size[1] / (width * size[0]))) if height and width else math.inf


def is_spatial(feature: object, size: tuple[int, int] = (1, 1)) -> TypeGuard[Tensor]:
    """Whether `grid` can read a module's output and finds more than one place in it."""
    if not isinstance(feature, Tensor) or not feature.is_floating_point():
        return False
    try:
        return math.prod(grid(feature, size).shape[2:]) > 1
    except UserError:
        return False


def find(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path.

    Raises:
        UserError: the module does not exist; the message has the nearest name and the existing ones.
    """
    if path:
        with contextlib.suppress(AttributeError):
            return model.get_submodule(path)
    known = [name for name, _ in model.named_modules() if name]
    shallow = [name for name in known if name.count(".") == 0]
    raise UserError(
        f"no tap {path!r} in this {type(model).__name__}.{nearest(path, known)} "
        f"Taps: {INPUT}, {LAST}, {COARSEST}, {', '.join(shallow)} and the modules inside them"
    )


def observe(model: nn.Module, images: Tensor) -> dict[str, tuple[object, bool]]:
    """Every module's output in one forward pass, in order: path -> (output, whether the model overwrote it in place later).

    The pass runs in eval mode on its own graph and leaves no trace in the model. The model's own output has the empty path.
    Weights that are zero everywhere, such as new heads of ViTs, get other values during this pass, so that gradients show what
    the logits depend on.
    """
    seen: dict[str, list[tuple[object, int]]] = {}
    paths = {module: path for path, module in model.named_modules()}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        earlier = seen.pop(paths[module], [])  # a module that is called again moves to the end; all calls are stored
        seen[paths[module]] = [*earlier, (output, output._version if isinstance(output, Tensor) else 0)]

    # the first hooks, as for taps: they see the module's own output, not the output of inserted parts
    handles = [module.register_forward_hook(note, prepend=True) for module in paths]
    with evaluating(model), torch.enable_grad():
        try:
            torch.func.functional_call(model, fill_zero_weights(model), (images.detach().requires_grad_().clone(),))
        finally:
            for handle in handles:
                handle.remove()
    return {
        path: (calls[-1][0], any(isinstance(output, Tensor) and output._version != old for output, old in calls))
        for path, calls in seen.items()
    }


def fill_zero_weights(model: nn.Module) -> dict[str, Tensor]:
    """Fixed values that replace the weights that are zero everywhere, by name."""
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
    """The default tap: the outermost module that returns the last feature map with a gradient at more than one place.

    In a CNN that is the last stage. If the head of a ViT reads only the class token, the patches behind the last attention have
    no gradient; then it is the input of that attention (`blocks.11.norm1`).

    Raises:
        UserError: no module returns a feature map.
    """
    spatial = {path: output for path, (output, _) in seen.items() if path and is_spatial(output, size)}
    if not spatial:
        raise UserError("no module of this model returns a feature map: name a tap")
    final = list(spatial)[-1]
    alike = [path for path in reversed(spatial) if spatial[path].shape == spatial[final].shape]
    last = next((path for path in alike if has_gradient(logits, spatial[path], size)), final)
    # A container returns the output of its last child: take the container, `layer3` rather than `layer3.2.relu`.
    parents = [path for path in alike if last.startswith(path + ".") and spatial[path] is spatial[last]]
    return min([*parents, last], key=len)


def finer_spatial(seen: dict[str, tuple[object, bool]], last: str, steps: int, size: tuple[int, int] = (1, 1)) -> str:
    """The tap `last-1`, `last-2`, ...: the last feature map of the grid that is 1, 2, ... sizes finer than the last tap's.

    Among the modules that return such a map it is the least nested one, since features inside a block are intermediate;
    among several of these the last.

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
            else f"no tap '{LAST}-{steps}': all feature maps of this model have one size"
        )
    before = list(places)[: list(places).index(last)]
    alike = [path for path in before if places[path] == finer[steps - 1]]
    return min(reversed(alike), key=lambda path: path.count("."))


ENCODERS = ("encoder", "backbone")
"""The usual names of the part of a dense network that makes the grid coarser."""

BETWEEN = 2
"""Along each axis, the number of places of a coarse grid on which one output depends through bilinear upsampling alone."""


def coarsest_spatial(
    model: nn.Module, seen: dict[str, tuple[object, bool]], logits: Tensor, size: tuple[int, int] = (1, 1)
) -> str:
    """The tap `coarsest`: the last feature map of the coarsest grid, on which the logits depend at more than one place.

    If the network has a part called `encoder` or `backbone`, only its modules count. Otherwise grids that begin with an adaptive
    pooling do not count (they are the context of a pyramid), and neither does a map that a dense network only passes through a
    1x1 convolution and upsampling: Grad-CAM there would be the logits again. One output depends on few places of such a map.

    Args:
        seen: what `observe` returned, without outputs that are not grids of places; with the model's own output.

    Raises:
        UserError: no module returns a feature map.
    """
    modules = dict(model.named_modules())
    maps = {path: output for path, (output, _) in seen.items() if path and is_spatial(output, size)}
    inner = {path: output for path, output in maps.items() if set(ENCODERS) & set(path.split("."))}
    if not maps:
        raise UserError("no module of this model returns a feature map: name a tap")
    places = {path: math.prod(grid(output, size).shape[2:]) for path, output in maps.items()}
    if not inner:
        pooled = {places[path] for path in maps if is_adaptive(modules[path])}
        inner = {path: output for path, output in maps.items() if places[path] not in pooled} or maps
    fewest = min(places[path] for path in inner)
    alike = [path for path in reversed(inner) if places[path] == fewest and has_gradient(logits, inner[path], size)]
    alike = alike or [path for path in reversed(inner) if places[path] == fewest]
    last = next((path for path in alike if is_mixed(logits, inner[path], size)), alike[0])
    same = [path for path in inner if inner[path] is inner[last]]  # containers, and modules that change nothing
    return min(same, key=lambda path: path.count("."))


def is_mixed(logits: Tensor, feature: Tensor, size: tuple[int, int]) -> bool:
    """Whether one place of dense logits depends on more of a feature than bilinear upsampling needs; True for other logits."""
    if logits.ndim != 4 or not feature.requires_grad:
        return True
    middle = logits[..., logits.shape[2] // 2, logits.shape[3] // 2]
    with torch.enable_grad():
        score = middle.float().square().sum()
    (gradient,) = torch.autograd.grad(score, feature, retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    reached = grid(gradient, size).abs().sum(1)[0].nonzero()
    return bool((reached.amax(0) - reached.amin(0) + 1 > BETWEEN).any()) if len(reached) else False


def is_linear(module: nn.Module) -> bool:
    """Whether a module, such as a perceptron in a transformer, has no layers with weights but linear ones."""
    layers = [inner for inner in module.modules() if next(inner.parameters(recurse=False), None) is not None]
    return bool(layers) and all(isinstance(inner, nn.Linear) for inner in layers)


def is_adaptive(module: nn.Module) -> bool:
    """Whether the first layer of a module is an adaptive pooling."""
    leaves = (inner for inner in module.modules() if not any(inner.children()))
    return isinstance(next(leaves, None), nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)


def has_gradient(logits: Tensor, feature: Tensor, size: tuple[int, int]) -> bool:
    """Whether the logits depend on more than one place of a feature map."""
    if not feature.requires_grad:
        return False
    with torch.enable_grad():
        score = logits.float().square().sum()
    (gradient,) = torch.autograd.grad(score, feature, retain_graph=True, allow_unused=True)
    return gradient is not None and int(grid(gradient, size).abs().sum(1).count_nonzero()) > 1


def breaks_gradient(model: nn.Module, images: Tensor) -> str | None:
    """The path of the first module that takes a feature with a gradient and returns one without; None if there is none."""
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
    """Eval mode within the context, each module's own mode afterwards.

    Only the flags are changed; `train()` is not called, because it may do more in some modules (merge weights, for example).
    """
    training, waiting = [], [model]
    while waiting:  # not `modules()`, which takes 5 % of a small network's forward pass
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
