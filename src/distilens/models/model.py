"""The `Model`: a network with its input size, normalisation, taps and inserted parts. Teachers and students are models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from distilens.foundation import notebook
from distilens.foundation.errors import UserError
from distilens.models import places, taps
from distilens.models.padding import Margins, margins_of, pad
from distilens.models.prediction import Masks, Prediction, by_size, predicted
from distilens.tasks import Task, as_task, with_classes
from distilens.tasks.classification import UNNAMED

Interpolation = Literal["bilinear", "bicubic", "nearest"]
GREY = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in the brightness of a pixel: ITU-R BT.601."""


@dataclass(frozen=True)
class Output:
    """What a model returns: logits (classes on axis 1) and the features at its taps, by path.

    `size` is the network's input size, with the margins of padded images. Its aspect ratio tells which axes of a feature are
    spatial. `task` says what the logits are.
    """

    logits: Float[Tensor, "b classes ..."]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    size: tuple[int, int] = (1, 1)
    task: Task = UNNAMED

    def __repr__(self) -> str:
        features = "".join(f", {path} {list(feature.shape)}" for path, feature in self.features.items())
        return f"Output(logits {list(self.logits.shape)}{features})"


# torch.export and torch.func see only the tensors of an output
_pytree.register_dataclass(
    Output,
    field_names=["logits", "features"],
    drop_field_names=["size", "task"],
    serialized_type_name="distilens.Output",
)


class Model(nn.Module):
    """A network with its input size, normalisation, taps and inserted parts. Teachers and students are models.

    `forward(images)` takes pixels in [0, 1] of any size. It resizes, normalises, runs the unmodified network, and returns
    logits and the features at the taps.

    Args:
        network: any module from `[b 3 h w]` to logits, or to a structure with `.logits`.
        classes: the names of the classes, in the order of the logits; or another `Task`.
        size: height and width that the network expects; other images are resized.
        mean: per channel, for pixels in [0, 1]; a single number for a network of grey images, which gets the brightness.
        std: the standard deviation, in the same form.
        name: the notation that made it, for the log.
        interpolation: how images are resized.

    Attributes:
        task: what the logits are: a classification into `classes`, or another task.
        loaded: whether weights were loaded; None if unknown.
        missing: the weights that were not in the loaded file; they are random.
        answers_for: the classes that the loaded head was trained for, if they could not be matched to `classes` by name.
        notes: further remarks for the user.
        matched: for weights that were matched by order, the name in the network of each module in the file.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str] | Task,
        *,
        size: tuple[int, int],
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        name: str = "",
        interpolation: Interpolation = "bilinear",
    ):
        super().__init__()
        self.network: nn.Module = network
        self.entrance: nn.Module = nn.Identity()  # the module of the tap `input`
        self.parts = nn.ModuleDict()
        self.inserted: dict[str, Inserted] = {}
        self.task = as_task(classes)
        self.size = (int(size[0]), int(size[1]))
        self.name = name or type(network).__name__
        self.interpolation: Interpolation = interpolation
        self.loaded: bool | None = None
        self.missing: tuple[str, ...] = ()
        self.answers_for: tuple[str, ...] | None = None
        self.notes: tuple[str, ...] = ()
        self.matched: Mapping[str, str] = {}
        self.taps: dict[str, taps.Tap] = {}
        self.frozen: list[nn.Module] = []
        self.multiple = 1  # what the network's images are padded to multiples of: see `padding.py`
        self.precision: torch.dtype | None = None  # of the network's weights, if not that of the pixels
        self.folded: frozenset[str] = frozenset()  # modules whose own output no longer exists: see `folding.py`
        self.companion: Callable[[Tensor], Mapping[str, Tensor]] | None = None  # see `core.accompany`
        self.pooled_head: str | None = (
            None  # the linear layer after global average pooling, once known: see `explain/cam.py`
        )
        self._last: str | None = None
        self._coarsest: str | None = None
        self._finer: dict[int, str] = {}  # cache, by the number of grids finer
        self._overwritten: dict[str, bool] = {}  # cache, by path
        self._places: Mapping[str, places.Finding] | None = None  # cache, by path
        self._confirmed: Mapping[str, places.Finding] | None = None
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits; empty if the task has no classes."""
        return self.task.classes

    @classes.setter
    def classes(self, names: Sequence[str]) -> None:
        self.task = with_classes(self.task, names)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        pixels = "×".join(map(str, self.size))
        return f"Model({self.name!r}: {count:,} parameters, {self.task.summary}, {pixels} pixels)"

    def _repr_html_(self) -> str:
        shown = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        height, width = self.size
        rows = [
            ("network", type(self.network).__name__),
            ("parameters", f"{sum(parameter.numel() for parameter in self.parameters()):,}"),
            ("classes", f"{len(self.classes)}: {shown}") if self.classes else ("task", self.task.name),
            ("pixels", f"{height}×{width}, mean {in_short(self.mean)}, deviation {in_short(self.std)}"),
            *([("taps", ", ".join(self.taps))] if self.taps else []),
        ]
        return notebook.heading(self.name) + notebook.table(rows)

    def forward(self, images: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor] | None = None) -> Output:
        if not inputs and self.companion is not None:
            inputs = self.companion(images)
        for name, inserted in self.inserted.items():
            inserted.inputs = inputs or {}
            missing = set(getattr(inserted.part, "requires", ())) - inserted.inputs.keys()
            if missing:
                raise UserError(
                    f"{self.name} cannot answer alone: its part {name} needs the input {', '.join(sorted(missing))} from "
                    "its teacher. Train it with another deploy=, or give it a companion (distilens.core.accompany)"
                )
        try:
            pixels = self.prepare(self.entrance(images))
            logits = logits_of(self.network(pixels if self.precision is None else pixels.to(self.precision)))
        except BaseException:
            self.empty_taps()
            raise
        kept = {tap: tap.take() for tap in set(self.taps.values())}
        features = {path: kept[tap] for path, tap in self.taps.items()}
        return Output(
            logits if self.precision is None else logits.to(images.dtype), features, self.padded_size, self.task
        )

    def empty_taps(self) -> None:
        """Release features that a forward pass left in the taps."""
        for tap in self.taps.values():
            tap.value = None

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes ..."]:
        """The logits only, without the tapped features."""
        return self(images).logits

    def predict(self, images: Any, *, chunk: int = 256) -> Prediction | Masks:
        """A `Prediction`: the classes of pictures and their probabilities, in eval mode and without gradients.

        A model for segmentation gives `Masks`: the class at each pixel of a picture, at the picture's own size.

        Args:
            images: tensors or arrays (`[b 3 h w]`, `[b h w 3]`, or a single image; 0 to 1 or 0 to 255), Pillow images, paths, or
                a list of these, which may have different sizes. They are resized and normalised here.
            chunk: number of images per forward pass.

        Raises:
            UserError: there are no pictures, or a file cannot be read.

        Example:
            >>> import distilens, torch
            >>> model = distilens.build_model("resnet8", ["cat", "dog"], (32, 32))
            >>> prediction = model.predict(torch.rand(2, 3, 32, 32))
            >>> len(prediction.classes), prediction.probabilities.shape
            (2, torch.Size([2, 2]))
        """
        return predicted(self, by_size(images), chunk)

    def prepare(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d height width"]:
        """Resize and normalise pixels in [0, 1] as in the network's training."""
        if images.shape[-2:] != self.size:
            images = self.resized(images)
        return (self.in_its_colours(images) - self.mean) / self.std

    def in_its_colours(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The brightness of the images for a network of grey images; for others the images unchanged."""
        if self.mean.shape[1] != 1 or images.shape[1] != 3:
            return images
        red, green, blue = (share * images[:, number, None] for number, share in enumerate(GREY))
        return red + green + blue

    def resized(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c height width"]:
        """Images at the network's own size."""
        if self.interpolation == "nearest":
            return functional.interpolate(images, self.size, mode="nearest")
        made = functional.interpolate(images, self.size, mode=self.interpolation, antialias=True, align_corners=False)
        return made.clamp(0, 1) if self.interpolation == "bicubic" else made  # bicubic values overshoot

    def tap(self, path: str = taps.LAST) -> str:
        """Read the output of a module from now on, under the given name; returns the module's own path.

        `last` is the last feature map, found by a forward pass. `last-1` is the last one of the next finer grid, and so on.
        `coarsest` is the last feature map of the coarsest grid: the end of an encoder. In a dense task, `last` is `coarsest`.
        `input` is the images.

        Raises:
            UserError: the module does not exist, or the forward pass does not reach it.
        """
        own = self.path_of(path)
        if own not in self.taps:
            self.taps[own], module = self.find(own)
            # the first hook: it sees the module's own output, not the output of inserted parts
            module.register_forward_hook(self.taps[own].keep, prepend=True)
        self.taps[path] = self.taps[own]
        return own

    def remove_taps(self) -> None:
        """Read no module's output any more."""
        for module in self.modules():
            for key, hook in list(module._forward_hooks.items()):
                if isinstance(getattr(hook, "__self__", None), taps.Tap):
                    del module._forward_hooks[key]
        self.taps.clear()

    @contextlib.contextmanager
    def reading(self, path: str = taps.LAST) -> Iterator[taps.Tap]:
        """A tap that exists only within the context; afterwards the model is as before."""
        tap, module = self.find(self.path_of(path))
        handle = module.register_forward_hook(tap.keep, prepend=True)
        try:
            yield tap
        finally:
            handle.remove()

    def find(self, path: str) -> tuple[taps.Tap, nn.Module]:
        """A new tap for a path, and the module whose forward fills it."""
        if path == taps.INPUT:
            return taps.Tap(path), self.entrance
        if path.partition(".")[0] in self.parts:
            return taps.Tap(path), taps.find(self.parts, path)
        module = taps.find(self.network, path)
        if path in self.folded:
            raise UserError(
                f"the tap {path!r} of {self.name} is folded into the normalisation behind it: tap that, or prepare the "
                f"model with keep=[{path!r}]"
            )
        if path not in self._overwritten:
            output, overwritten = self.observe().get(path, (None, False))
            if not isinstance(output, Tensor):
                raise UserError(f"the forward of {self.name} gives no tensor at the tap {path!r}: name another module")
            self._overwritten[path] = overwritten
        return taps.Tap(path, self._overwritten[path]), module

    def path_of(self, tap: str) -> str:
        """A module's own path; for `coarsest`, `last`, `last-1` and so on it is found by a forward pass.

        Raises:
            UserError: the output looks like a spatial grid, but is not one of places in the image: see `places.py`.
        """
        if tap == taps.COARSEST:
            return self.coarsest_tap
        start, dash, steps = tap.partition("-")
        if start != taps.LAST or (dash and not steps.isdecimal()):
            if tap != taps.INPUT and tap.partition(".")[0] not in self.parts:
                self.check_places(tap)
            return tap
        finer = int(steps or 0)
        if not finer:
            return self.last_tap
        if finer not in self._finer:
            last, seen = self.last_tap, self.confirmed_places()
            # blocks may contain padded windows of odd sizes: a grid counts only if a feature was seen to follow the image
            grids = {finding.grid for finding in seen.values() if finding.followed}
            maps = {
                path: entry
                for path, entry in self.maps().items()
                if path == last or (path in seen and seen[path].grid in grids)
            }
            self._finer[finer] = taps.finer_spatial(maps, last, finer, self.padded_size)
        return self._finer[finer]

    @property
    def last_tap(self) -> str:
        """The path of the last feature map; in a dense task the end of the encoder, because behind it come the logits again."""
        if self.task.dense:
            return self.coarsest_tap
        if self._last is None:
            modules, maps = dict(self.network.named_modules()), self.maps()
            # a linear layer inside an attention or a perceptron is not a feature map of the model, though it has its shape
            seen = {path: entry for path, entry in maps.items() if not path or not isinstance(modules[path], nn.Linear)}
            self._last = taps.last_spatial(seen, logits_of(seen[""][0]), self.padded_size)
        return self._last

    @property
    def coarsest_tap(self) -> str:
        """The path of the last feature map of the coarsest grid: the end of the encoder of a dense network."""
        if self._coarsest is None:
            modules, seen = dict(self.network.named_modules()), self.confirmed_places()
            grids = {finding.grid for finding in seen.values() if finding.followed}
            maps = {
                path: entry
                for path, entry in self.maps().items()
                if not path or (path in seen and seen[path].grid in grids and not taps.is_linear(modules[path]))
            }
            self._coarsest = taps.coarsest_spatial(self.network, maps, logits_of(maps[""][0]), self.padded_size)
        return self._coarsest

    def observe(self) -> dict[str, tuple[object, bool]]:
        """Every module's output for the example image: see `taps.observe`.

        Raises:
            UserError: the network cannot take images of the model's size.
        """
        with self.probing():
            return taps.observe(self.network, self.padded_example())

    def maps(self) -> dict[str, tuple[object, bool]]:
        """The result of `observe`, without grids that are not grids of places in the image."""
        seen = self.observe()
        self._overwritten |= {path: changed for path, (output, changed) in seen.items() if isinstance(output, Tensor)}
        return {path: entry for path, entry in seen.items() if not self.fault_of(path)}

    @property
    def places(self) -> Mapping[str, places.Finding]:
        """For every grid, by path, whether it is one of places in the image. Computed once, by a forward pass."""
        if self._places is None:
            with self.probing():
                self._places = places.test_places(self.network, self.padded_example())
        return self._places

    def confirmed_places(self) -> Mapping[str, places.Finding]:
        """`places`, restricted to what a second test with another image confirms.

        Among many attention features, which are not spatial grids, one may follow five patches by chance. So there is a second
        test if the first one found such features.
        """
        if self._confirmed is None:
            self._confirmed = self.places
            if any(finding.fault for finding in self.places.values()):
                with self.probing():
                    again = places.test_places(self.network, -self.padded_example())
                self._confirmed = {path: finding for path, finding in self.places.items() if not again[path].fault}
        return self._confirmed

    def fault_of(self, path: str) -> str:
        """The reason why an output that looks like a grid is not one of places in the image; empty if it is one."""
        return self.places[path].fault if path in self.places else ""

    def check_places(self, path: str) -> None:
        """Raise a `UserError` if a tap looks like a grid, but is not one of places in the image."""
        if fault := self.fault_of(path):
            nearest = ", ".join(places.nearest(path, self.places)) or "none"
            shape = ["b", *self.places[path].shape[1:]]
            raise UserError(
                f"the tap {path!r} of {self.name} is not a feature map: {fault}. It gives [{' '.join(map(str, shape))}]. "
                f"The nearest taps that are feature maps: {nearest}"
            )

    @contextlib.contextmanager
    def probing(self) -> Iterator[None]:
        """A context for forward passes of the bare network on example images: parts get no inputs; taps are emptied afterwards.

        Raises:
            UserError: the network fails on images of the model's size.
        """
        for inserted in self.inserted.values():
            inserted.inputs = {}
        try:
            yield
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            size = "×".join(map(str, self.size))
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{self.name} fails on an image of {size} pixels: {reason}. If it takes images of another size, give it size="
            ) from error
        finally:
            self.empty_taps()

    def probe(self, batch: int = 1) -> Tensor:
        """The logits of example images, in eval mode, even if a part lacks a required input."""
        for inserted in self.inserted.values():
            inserted.inputs = {}
        with taps.evaluating(self), torch.no_grad():
            return logits_of(self.network(self.prepare(self.entrance(self.example(batch)))))

    def insert(self, tap: str, part: nn.Module, *, name: str) -> None:
        """Insert a module behind a tap: `part(feature, inputs)` returns a feature of the same shape.

        A part that returns another number of channels has a method `enter(network)`, which adapts the network.

        The model's own module names do not change; the part's modules can be tapped as `name.module`. `inputs` are the extra
        inputs of the student, by name. A part built by `build_part` is saved with the model and built again when loaded.
        """
        if hasattr(self.parts, name) or "." in name:
            raise UserError(f"a part named {name!r} cannot be inserted: the name is in use or contains a dot")
        path = self.path_of(tap)
        module = self.entrance if path == taps.INPUT else taps.find(self.network, path)
        self.parts[name] = part.to(self.device)
        self.inserted[name] = inserted = Inserted(part, path)
        if isinstance(part, Entering):
            part.enter(self.network)
            self.network.to(self.device)
        inserted.handle = module.register_forward_hook(inserted.apply)
        self._overwritten.clear()
        self.pooled_head = None

    def behind(self, path: str) -> str:
        """The tap of the feature that the next layer gets: the module's own path, or the name of the last part behind it."""
        return [path, *(name for name, inserted in self.inserted.items() if inserted.path == path)][-1]

    def remove(self, name: str) -> None:
        """Remove an inserted part."""
        self.inserted.pop(name).handle.remove()
        del self.parts[name]
        for path in [path for path in self.taps if path.partition(".")[0] == name]:
            del self.taps[path]
        self._overwritten.clear()
        self.pooled_head = None

    def freeze(self, *, but: Sequence[str] = ()) -> None:
        """Freeze the network's weights, in eval mode, except for the modules at the given paths (new heads)."""
        kept = [taps.find(self.network, path) for path in but]
        trained = {inner for module in kept for inner in module.modules()}
        self.frozen = [module for module in self.network.modules() if module not in trained]
        self.network.requires_grad_(False)
        for module in kept:
            module.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def example(self, batch: int = 1) -> Tensor:
        """Example images of the right size for finding shapes: a fixed texture, so that gradients are not 0 everywhere."""
        channels = self.mean.shape[1]
        pixels = torch.linspace(-2, 2, channels * self.size[0] * self.size[1], device=self.device)
        parameter = next(self.network.parameters(), self.mean)
        return pixels.sin().view(1, channels, *self.size).expand(batch, -1, -1, -1).to(parameter.dtype).contiguous()

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the images inside the network: its size, or the next multiples if it pads them."""
        left, right, top, bottom = self.margins
        return self.size[0] + top + bottom, self.size[1] + left + right

    @property
    def margins(self) -> Margins:
        """The rows and columns that are added on each side of the images inside the network."""
        return margins_of(self.size, int(getattr(self.network, "multiple", self.multiple)))

    def padded_example(self) -> Tensor:
        """An example image as the inside of the network sees it, so that places in it are those of the features."""
        return pad(self.in_its_colours(self.example()), self.margins)

    def bare_state(self) -> dict[str, Tensor]:
        """The state that is saved and shipped: the network's own, and the parts' under `parts.`."""
        return {
            **self.network.state_dict(),
            **{f"parts.{key}": value for key, value in self.parts.state_dict().items()},
        }

    def load_bare_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `bare_state`."""
        parts = {key.removeprefix("parts."): value for key, value in state.items() if key.startswith("parts.")}
        self.network.load_state_dict({key: value for key, value in state.items() if not key.startswith("parts.")})
        self.parts.load_state_dict(parts)


@runtime_checkable
class Entering(Protocol):
    """A part that adapts the network when it is inserted."""

    def enter(self, network: nn.Module) -> None: ...


class Inserted:
    """A part and its position: a forward hook that passes the feature through the part."""

    handle: RemovableHandle

    def __init__(self, part: nn.Module, path: str):
        self.part, self.path = part, path
        self.inputs: Mapping[str, Tensor] = {}

    def apply(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        return self.part(output, self.inputs)


def logits_of(returned: object) -> Tensor:
    """The logits in a network's output: a tensor, or `.logits` / `["logits"]` of a structure.

    Raises:
        UserError: there are no logits; the message describes the output.
    """
    if isinstance(returned, Mapping):
        logits = returned.get("logits", returned.get("out"))
    elif isinstance(returned, Tensor):
        logits = returned
    else:
        logits = getattr(returned, "logits", None)
    if isinstance(logits, Tensor) and logits.ndim >= 2:
        return logits
    raise UserError(
        f"the model must return logits [b classes], or a structure with .logits; it returned {kind_of(returned)}"
    )


def kind_of(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(kind_of(item) for item in value)}"
    names = [name for name in getattr(value, "__dict__", {}) if not name.startswith("_")]
    return f"a {type(value).__name__}" + (f" with {', '.join(names)}" if names else "")


def in_short(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.flatten().tolist())
