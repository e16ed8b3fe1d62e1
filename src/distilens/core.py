"""The whole idea on one page: a run trains a student with a list of methods, each of them up to four verbs.

             once, before                      each step                                               once, after
    Method:  prepare(student, batch, answer)   transform(batch, answer)   loss(batch, output, answer)   finish(student)

A `Batch` goes to the teacher, which gives an `Answer`. Each method may change what the student sees (`transform`); the student
gives an `Output`; each method may add a named term (`loss`). The sum of the terms is what is minimised, and the terms are
the log.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from distilens import draws, taps
from distilens.errors import UserError

if TYPE_CHECKING:
    from distilens.data.geometry import Geometry


@dataclass(frozen=True)
class Mixed:
    """What was mixed into each image of a batch: the other image's label, and the share in [0, 1] that is still its own."""

    labels: Int[Tensor, " b"]
    share: Float[Tensor, " b"]


@dataclass(frozen=True)
class Batch:
    """Some images and all that is known about them.

    Attributes:
        images: pixels in [0, 1]: what teachers see. Never changed by a method.
        labels: the class of each image; -1 where there is none.
        index: the row of each image in the *source* data set, before `limit`, `shots` and splits.
        view: what the student sees; starts as `images`, and only methods change it.
        inputs: named extra inputs of the student, such as a map.
        mask: evidence in [0, 1], where the data set has it.
        mixed: the other image that was mixed in, where augmentation mixes: its labels, and the first image's share.
        geometry: the source box and flip that were drawn for each image; None for untransformed images.
        source: makes the untransformed images; read them as `canonical`.
        epoch, progress, seed: where in the run this is (`progress` in [0, 1]), and the data seed.
    """

    images: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    index: Int[Tensor, " b"]
    view: Float[Tensor, "b c h w"] = None  # type: ignore[assignment]  # set to `images` below
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Float[Tensor, "b h w"] | None = None
    mixed: Mixed | None = None
    geometry: Geometry | None = None
    source: Callable[[], Tensor] | None = None
    epoch: int = 0
    progress: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.view is None:
            object.__setattr__(self, "view", self.images)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def canonical(self) -> Float[Tensor, "b c h w"]:
        """The untransformed images, made when asked for."""
        return self.images if self.source is None else self.source()

    def draw(self, name: str, count: int = 1) -> Float[Tensor, "b count"]:
        """Numbers in [0, 1) that depend on (seed, epoch, index, name) alone, whatever the order or the batch."""
        return draws.uniform(name, self.index, self.seed, self.epoch, count=count)

    def replaced(self, **changes: object) -> Batch:
        """This batch with some of its fields changed: what `transform` returns."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Answer:
    """What a teacher says of a batch: only what some method needs is there.

    Attributes:
        logits: `[b classes]`.
        features: by tap.
        maps: by need, `[b h w]`, float32.
        scores: by judge, `[b]`.
        modules: by path: a part of the teacher that a method reuses.
        trust: `[b]` in [0, 1]; 0 where no teacher is to be believed. Weights every loss that asks something of a teacher.
    """

    logits: Float[Tensor, "b classes"] | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, Float[Tensor, "b h w"]] = field(default_factory=dict)
    scores: Mapping[str, Float[Tensor, " b"]] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    trust: Float[Tensor, " b"] | None = None


@dataclass(frozen=True)
class Output:
    """What a model returns: logits (classes on axis 1) and the features at its taps, by path."""

    logits: Float[Tensor, "b classes"]
    features: Mapping[str, Tensor] = field(default_factory=dict)


class Model(nn.Module):
    """A network, the pixels that it expects, its taps and its parts. Teachers and students are both of this kind.

    `forward(images)` takes pixels in [0, 1] of any size: it resizes, normalises, runs the unmodified network, and returns
    logits and the features at the taps.

    Args:
        network: any module from `[b 3 h w]` to logits, or to a structure with `.logits`.
        classes: the names of the classes, in the order of the logits.
        size: height and width that the network expects; other images are resized.
        mean, std: per channel, for pixels in [0, 1].
        name: the notation that made it, for the log.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        *,
        size: tuple[int, int],
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        name: str = "",
    ):
        super().__init__()
        self.network: nn.Module = network
        self.entrance = nn.Identity()  # where the tap `input` reads
        self.parts = nn.ModuleDict()
        self.inserted: dict[str, Inserted] = {}
        self.classes = tuple(classes)
        self.size = (int(size[0]), int(size[1]))
        self.name = name or type(network).__name__
        self.taps: dict[str, taps.Tap] = {}
        self.frozen: list[nn.Module] = []
        self._last: str | None = None
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def forward(self, images: Float[Tensor, "b c h w"], inputs: Mapping[str, Tensor] | None = None) -> Output:
        for inserted in self.inserted.values():
            inserted.inputs = inputs or {}
        logits = logits_of(self.network(self.prepare(self.entrance(images))))
        kept = {tap: tap.take() for tap in set(self.taps.values())}
        return Output(logits, {path: kept[tap] for path, tap in self.taps.items()})

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """The logits alone, whatever is tapped."""
        return self(images).logits

    def prepare(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c height width"]:
        """Resize and normalise: pixels in [0, 1] as the network was trained to see them."""
        if images.shape[-2:] != self.size:
            images = functional.interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False)
        return (images - self.mean) / self.std

    def tap(self, path: str = taps.LAST) -> str:
        """Read the output of a module from now on, under the name asked for; returns the module's own path.

        `last` is the last feature map, found by a forward pass; `input` is the images themselves.

        Raises:
            UserError: no such module, or the forward does not reach it.
        """
        found = self.last_tap if path == taps.LAST else path
        if found not in self.taps:
            self.taps[found], module = self.find(found)
            module.register_forward_hook(self.taps[found].keep)
        self.taps[path] = self.taps[found]
        return found

    @contextlib.contextmanager
    def reading(self, path: str = taps.LAST) -> Iterator[taps.Tap]:
        """A tap for the forwards inside the context only: the model is left as it was."""
        tap, module = self.find(self.last_tap if path == taps.LAST else path)
        handle = module.register_forward_hook(tap.keep)
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
        output, overwritten = taps.observe(self.network, self.example()).get(path, (None, False))
        if not isinstance(output, Tensor):
            raise UserError(f"the forward of {self.name} gives no tensor at the tap {path!r}: name another module")
        return taps.Tap(path, overwritten), module

    @property
    def last_tap(self) -> str:
        """The path of the last feature map."""
        if self._last is None:
            seen = taps.observe(self.network, self.example())
            self._last = taps.last_spatial(seen, logits_of(seen[""][0]))
        return self._last

    def insert(self, tap: str, part: nn.Module, *, name: str) -> None:
        """Put a module behind a tap: `part(feature, inputs)` returns a feature of the same shape, and is part of the model.

        The model's own module names stay; the part's modules can be tapped as `name.module`. `inputs` are the extra inputs
        of the student, by name.
        """
        if name in self.parts or "." in name:
            raise UserError(f"a part named {name!r} cannot be inserted: the name is taken or has a dot")
        path = self.last_tap if tap == taps.LAST else tap
        module = taps.find(self.network, path)
        self.parts[name] = part.to(self.device)
        self.inserted[name] = Inserted(part)
        module.register_forward_hook(self.inserted[name].apply)

    def freeze(self, *, but: str | None = None) -> None:
        """Keep the network as it is, in eval mode too, except the module at a path (a new head)."""
        kept = taps.find(self.network, but) if but else None
        trained = set(kept.modules()) if kept is not None else set()
        self.frozen = [module for module in self.network.modules() if module not in trained]
        self.network.requires_grad_(False)
        if kept is not None:
            kept.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def example(self, batch: int = 1) -> Tensor:
        """Images of the right size, for probing shapes: mid-grey with a fixed texture, so that gradients are not flat."""
        pixels = torch.linspace(-2, 2, 3 * self.size[0] * self.size[1], device=self.device)
        parameter = next(self.network.parameters(), self.mean)
        return pixels.sin().view(1, 3, *self.size).expand(batch, -1, -1, -1).to(parameter.dtype).contiguous()

    def bare_state(self) -> dict[str, Tensor]:
        """What is saved and shipped: the network's own state, and the parts' under `parts.`."""
        return {
            **self.network.state_dict(),
            **{f"parts.{key}": value for key, value in self.parts.state_dict().items()},
        }

    def load_bare_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `bare_state`."""
        parts = {key.removeprefix("parts."): value for key, value in state.items() if key.startswith("parts.")}
        self.network.load_state_dict({key: value for key, value in state.items() if not key.startswith("parts.")})
        self.parts.load_state_dict(parts)


class Inserted:
    """A part and its place: a forward hook that hands the feature on through the part."""

    def __init__(self, part: nn.Module):
        self.part = part
        self.inputs: Mapping[str, Tensor] = {}

    def apply(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        return self.part(output, self.inputs)


def logits_of(returned: object) -> Tensor:
    """The logits in whatever a network returns: a tensor, or `.logits` / `["logits"]` of a structure.

    Raises:
        UserError: what came instead.
    """
    if isinstance(returned, Mapping):
        found = returned.get("logits", returned.get("out"))
    elif isinstance(returned, Tensor):
        found = returned
    else:
        found = getattr(returned, "logits", None)
    if isinstance(found, Tensor) and found.ndim >= 2:
        return found
    raise UserError(
        f"the model must return logits [b classes], or a structure with .logits; it returned {kind_of(returned)}"
    )


def kind_of(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


class Method(nn.Module):
    """One idea of one paper. Write the verbs that it has; each default changes nothing.

    Its own parameters and buffers are trained and checkpointed with it, and never shipped.

    Attributes:
        needs: what it asks of the teacher, in notation: `logits`, `features:layer3`, `maps:gradcam`, `module:fc`.
        weight: the factor of its term; the notation's `weight=` sets it.
        second_order: its loss differentiates a gradient, which `torch.compile` cannot.
    """

    needs: tuple[str, ...] = ()
    weight: float = 1.0
    second_order: bool = False

    def prepare(self, student: Model, batch: Batch, answer: Answer) -> Model:
        """Once, before training: add taps and parts, size own modules from the shapes of a first batch."""
        return student

    def transform(self, batch: Batch, answer: Answer) -> Batch:
        """Each step, before the student: change `view` or `inputs`."""
        return batch

    def loss(self, batch: Batch, output: Output, answer: Answer) -> Tensor | None:
        """Each step, after the student: a term per sample `[b]`, or a scalar."""
        return None

    def finish(self, student: Model) -> Model:
        """Once, after training: turn the training form into the final one."""
        return student


Teacher = Callable[[Batch, Sequence[str]], Answer]
"""Anything that answers a batch: `teacher(batch, needs) -> Answer`."""


class Objective(nn.Module):
    """What is minimised: the student, seen through a list of methods.

    Args:
        student: the model that is trained.
        methods: name -> method; the names are the terms' names in the log.
    """

    def __init__(self, student: Model, methods: Mapping[str, Method]):
        super().__init__()
        self.student = student
        self.methods = nn.ModuleDict(dict(methods))

    def terms(self) -> dict[str, Method]:
        """The methods by the names of their terms."""
        return cast(dict[str, Method], dict(self.methods.items()))

    @property
    def needs(self) -> tuple[str, ...]:
        """What all methods together ask of the teacher, each once."""
        return needs_of(self.terms().values())

    def prepare(self, batch: Batch, answer: Answer) -> None:
        """Let each method prepare the student on a first batch."""
        for method in self.terms().values():
            self.student = method.prepare(self.student, batch, answer)

    def forward(self, batch: Batch, answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of one batch, by name; their sum is the loss."""
        for method in self.terms().values():
            batch = method.transform(batch, answer)
        output = self.student(batch.view, batch.inputs)
        terms = {}
        for name, method in self.terms().items():
            loss = method.loss(batch, output, answer)
            if loss is not None:
                if loss.ndim and method.needs and answer.trust is not None:
                    loss = loss * answer.trust
                terms[name] = method.weight * loss.float().mean()
        return terms

    def finish(self) -> Model:
        """The student as it will be used: no method, no teacher, no label."""
        for method in self.terms().values():
            self.student = method.finish(self.student)
        return self.student


def needs_of(methods: Iterable[Method]) -> tuple[str, ...]:
    """What some methods together ask of the teacher, each need once, in order."""
    return tuple(dict.fromkeys(need for method in methods for need in method.needs))
