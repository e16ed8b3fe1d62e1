"""`Explainer` and `Explanation`, and what all explainers share: checks, targets, eval mode, chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distilens.foundation.errors import UserError
from distilens.models.model import Model, Output
from distilens.models.objects import as_model
from distilens.models.taps import evaluating
from distilens.tasks import Task
from distilens.tasks.classification import UNNAMED

Scalar = Callable[[Tensor], Tensor]
"""A function from the outputs of some images `[r k]` to the number per image `[r]` that an explanation differentiates."""
Target = Tensor | Sequence[int] | int | Scalar | None
"""What to explain: classes, one per image or one for all; a function; or None for the task's own choice (the top class).

In a dense task a class stands for the places where the model predicts it. `[b h w]` names the places: at each the class that is
explained, elsewhere -1.
"""
Aim = Tensor | Scalar
"""A target as explainers use it: a class (an output) per image, in a dense task with its places `[b h w]`; or a function."""


@dataclass(frozen=True)
class Explanation:
    """Raw float32 maps, and what they explain.

    Attributes:
        maps: one per image; `Explainer.signed` says whether they are signed.
        logits: the model's logits for the same images.
        target: the class (the output) that each map explains; -1 if a function was explained.
        residual: the error of the explainer's own identity (completeness, for Integrated Gradients), in logits.
    """

    maps: Float[Tensor, "b h w"]
    logits: Float[Tensor, "b classes ..."]
    target: Int[Tensor, "b ..."]
    residual: Float[Tensor, " b"] | None = None

    @classmethod
    def of(cls, maps: Tensor, logits: Tensor, aim: Aim, residual: Tensor | None = None) -> Explanation:
        """An explanation of a target that may be a function."""
        target = aim if isinstance(aim, Tensor) else torch.full((len(logits),), -1, device=logits.device)
        return cls(maps, logits, target, residual)


class Explainer:
    """Makes maps of a model for images and classes.

    For evaluation, call the explainer; it leaves the model unchanged. A loss uses one of two methods, whose maps can be trained
    through. `from_output` takes the features and logits that a step already has. `from_model` runs its own forward passes, in
    eval mode.

    A subclass implements `explain` (called in eval mode and float32, under the caller's grad mode). If the map has a derivative,
    it also implements `from_output` or `from_model`.

    Attributes:
        signed: whether maps have values of both signs.
        tap: the tap that it reads, if any.
        compares: whether it compares with other images, its `reference`.
        reference: the images that it compares with, if any.
    """

    signed: bool = False
    tap: str | None = None
    compares: bool = False
    reference: Tensor | None = None

    def __call__(self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Target = None) -> Explanation:
        """Explain some images for some classes.

        Args:
            model: a `Model`, or any module from normalised images to logits (see `as_model`).
            images: pixels in [0, 1], on the model's device.
            target: labels or other classes, one for all, or None for the model's own top-1. A function of the outputs `[r k]`
                explains the number per image `[r]` that it returns: a margin, a regression, a sum over places.

        Raises:
            UserError: no images, NaN, another device, a class that the model does not have, a tap without a spatial grid.
        """
        if not isinstance(model, Model):
            model = as_model(model, size=(int(images.shape[-2]), int(images.shape[-1]))).to(images.device)
        with quietly(model):
            return self.explain(model, checked(model, images), target)

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        raise NotImplementedError

    def classwise(self, model: Model, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes i j"]:
        """The raw maps of all classes for each image; the model is unchanged afterwards."""
        classes = range(len(model.classes))
        return torch.stack([self(model, images, number).maps for number in classes], 1)

    def attach(self, model: Model) -> None:
        """Prepare a model for `from_output`: call it once, before the model's forward pass."""
        if self.tap is not None:
            model.tap(self.tap)

    def from_output(
        self, output: Output, target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b h w"]:
        """Maps from a step's features and logits; with `create_graph`, a loss can train through them.

        The output must come from a model that taps `self.tap`, with a graph from the tap to the logits. In train mode, batch norm
        makes the maps depend on the batch.
        """
        if type(self).from_model is Explainer.from_model:
            raise UserError(f"{type(self).__name__} has no derivative that a loss could use")
        raise UserError(f"{type(self).__name__} needs its own forward passes: use from_model(model, images, target)")

    def classwise_from_output(self, output: Output, *, create_graph: bool = True) -> Float[Tensor, "b classes i j"]:
        """The maps of all classes for each image, as `from_output` makes them."""
        classes = range(output.logits.shape[1])
        return torch.stack([self.from_output(output, number, create_graph=create_graph) for number in classes], 1)

    def from_model(
        self, model: Model, images: Float[Tensor, "b c h w"], target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b i j"]:
        """Maps that a loss can train through, from their own forward passes in eval mode: batch norm statistics do not change."""
        if self.tap is None:
            raise UserError(f"{type(self).__name__} has no derivative that a loss could use")
        with explaining(model), model.reading(self.tap) as tap:
            logits = model.logits(images)
            output = Output(logits, {self.tap: tap.take()}, task=model.task)
            return self.from_output(output, target, create_graph=create_graph)


def target_of(logits: Tensor, target: Target, task: Task = UNNAMED) -> Aim:
    """What to explain: `target` if given, else the task's own choice (in classification the model's top class).

    Raises:
        UserError: a class that the model does not have, or another number of classes than images.
    """
    if target is None:
        return task.explained(logits)
    if callable(target) and not isinstance(target, Tensor):
        return target
    chosen = ordinary(torch.as_tensor(target, device=logits.device))
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise UserError(f"targets must be class numbers; given {chosen.dtype}")
    if task.dense and chosen.ndim == 3:
        return checked_places(chosen.long(), logits)
    chosen = chosen.long().expand(len(logits)) if chosen.ndim == 0 else chosen.long()
    if chosen.shape != logits.shape[:1]:
        raise UserError(
            f"there must be one target per image: {len(logits)} images, targets of shape {list(chosen.shape)}"
        )
    if looks(chosen) and chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < logits.shape[1]):
        given = f"{int(chosen.min())} to {int(chosen.max())}"
        raise UserError(f"targets must be classes from 0 to {logits.shape[1] - 1}; given {given}")
    return task.aim(logits, chosen)


def checked_places(aim: Int[Tensor, "b h w"], logits: Float[Tensor, "b classes i j"]) -> Int[Tensor, "b h w"]:
    """An aim of a dense task.

    Raises:
        UserError: another number of images, or a value that is neither a class nor -1.
    """
    if len(aim) != len(logits):
        raise UserError(f"there must be one target per image: {len(logits)} images, targets of shape {list(aim.shape)}")
    if looks(aim) and aim.numel() and not (int(aim.min()) >= -1 and int(aim.max()) < logits.shape[1]):
        raise UserError(
            f"the places to explain have a class from 0 to {logits.shape[1] - 1}, all others -1; given {int(aim.min())} to "
            f"{int(aim.max())}"
        )
    return aim


def classes_of(logits: Tensor, target: Target, task: Task, name: str) -> Int[Tensor, " b"]:
    """`target_of`, for an explainer that needs a class.

    Raises:
        UserError: the target is a function, or the task is dense.
    """
    aim = target_of(logits, target, task)
    if not isinstance(aim, Tensor):
        raise UserError(f"{name} explains a class, but the target is a function: take an explainer that uses gradients")
    if task.dense:
        raise UserError(
            f"{name} explains a class of the whole image, but a {task.name} answers for each place: take gradcam, ig, occlusion "
            "or another explainer that takes any number"
        )
    return aim


def scores_of(logits: Float[Tensor, "b classes ..."], target: Aim, task: Task = UNNAMED) -> Float[Tensor, " b"]:
    """The scalar to explain, one per image: in classification the logit of the target class.

    Raises:
        UserError: a function does not return one number per image.
    """
    if isinstance(target, Tensor):
        return task.scalar(logits, target)
    scores = target(logits)
    if not isinstance(scores, Tensor) or scores.shape != logits.shape[:1]:
        given = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"a function to explain must return one number per image, [{len(logits)}]; it returned {given}")
    return scores


def confidence_of(logits: Float[Tensor, "b classes ..."], target: Aim, task: Task = UNNAMED) -> Float[Tensor, " b"]:
    """How strongly a model answers the target: in classification the probability of the class; the number of a function."""
    return task.confidence(logits, target) if isinstance(target, Tensor) else scores_of(logits, target)


def at_rows(target: Aim, rows: slice, times: int) -> Aim:
    """The targets of some images, each repeated."""
    return target[rows].repeat_interleave(times, 0) if isinstance(target, Tensor) else target


def checked(model: Model, images: Tensor) -> Tensor:
    """The images, checked and detached.

    Raises:
        UserError: a wrong shape, type or device; no images; NaN or infinite pixels.
    """
    if images.ndim != 4 or images.shape[1] not in (3, model.mean.shape[1]):
        raise UserError(f"images to explain are [b 3 h w]; given {list(images.shape)}")
    if not len(images):
        raise UserError("there are no images to explain: the batch is empty")
    if not images.is_floating_point():
        raise UserError(f"images to explain are pixels in [0, 1]; given {images.dtype}: divide them by 255")
    if images.device.type != model.device.type or images.device != model.device:
        raise UserError(f"the images are on {images.device}, the model is on {model.device}: move one of them")
    if (
        looks(images) and not images.sum().isfinite()
    ):  # one pass; the broken images are only searched for after it fails
        broken = (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        raise UserError(f"images {', '.join(map(str, broken[:8]))} of the batch have pixels that are NaN or infinite")
    return ordinary(images).detach()


SOUND: ContextVar[bool] = ContextVar("sound", default=False)
"""Whether the explained images and classes come from a training step, which checks them itself."""


@contextlib.contextmanager
def known_to_be_sound() -> Iterator[None]:
    """Within, tensors on a GPU are not checked for finite pixels and valid classes: the check waits for the GPU.

    On a CPU the checks stay, because they cost nothing.
    """
    token = SOUND.set(True)
    try:
        yield
    finally:
        SOUND.reset(token)


def looks(values: Tensor) -> bool:
    """Whether values are checked on the host."""
    return values.device.type == "cpu" or not SOUND.get()


def ordinary(values: Tensor) -> Tensor:
    """A tensor that autograd accepts: an inference tensor is copied."""
    return values.clone() if values.is_inference() else values


@contextlib.contextmanager
def quietly(model: Model) -> Iterator[None]:
    """Within: eval mode, float32, no `inference_mode`. Afterwards the model and torch's random state are as before."""
    device = model.device
    with (
        contextlib.nullcontext() if not torch.is_inference_mode_enabled() else torch.inference_mode(False),
        torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"),
        evaluating(model),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextlib.contextmanager
def explaining(model: Model) -> Iterator[None]:
    """The context of `from_model`: eval mode, float32, gradients on."""
    with evaluating(model), torch.autocast(model.device.type, enabled=False), torch.enable_grad():
        yield


def choose_target(model: Model, images: Tensor, target: Target) -> Aim:
    """What to explain in a loss before there are logits; without `target`, a forward pass finds the model's top-1."""
    if target is not None and not model.task.dense:
        return target_of(images.new_empty(len(images), model.task.outputs), target)
    with explaining(model), torch.no_grad():
        return target_of(model.logits(images), target, model.task)


def in_chunks(
    explain: Callable[[Model, Tensor, Aim | None], Explanation],
    model: Model,
    images: Float[Tensor, "b c h w"],
    target: Aim | None = None,
    *,
    chunk: int = 64,
    done: Callable[[int], object] = lambda count: None,
) -> Explanation:
    """Explain many images in chunks on the model's device; the result is on the CPU. `done(count)` is called per chunk."""
    chunks = images.split(chunk)
    aims = target.split(chunk) if isinstance(target, Tensor) else [target] * len(chunks)
    targets = [aim.to(model.device) if isinstance(aim, Tensor) else aim for aim in aims]
    parts = []
    for part, aim in zip(chunks, targets, strict=True):
        parts.append(explain(model, part.to(model.device), aim))
        done(len(part))
    residuals = [part.residual.cpu() for part in parts if part.residual is not None]
    return Explanation(
        torch.cat([part.maps.cpu() for part in parts]),
        torch.cat([part.logits.cpu() for part in parts]),
        torch.cat([part.target.cpu() for part in parts]),
        torch.cat(residuals) if residuals else None,
    )
