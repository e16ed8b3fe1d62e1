"""What an explainer returns, and what all explainers share: the scalar that they differentiate, and the quiet around them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distilens.core import Model, Output
from distilens.errors import UserError
from distilens.models.objects import as_model
from distilens.taps import evaluating

Target = Tensor | Sequence[int] | int | None
"""The classes to explain: one for each image, one for all, or None for the model's own top-1."""


@dataclass(frozen=True)
class Explanation:
    """Maps, raw and float32, and what they explain.

    Attributes:
        maps: one per image; the explainer says whether they are signed.
        logits: of the same forward.
        target: the class that each map explains.
        residual: how far the map misses the explainer's own promise (completeness, for Integrated Gradients), in logits.
    """

    maps: Float[Tensor, "b h w"]
    logits: Float[Tensor, "b classes"]
    target: Int[Tensor, " b"]
    residual: Float[Tensor, " b"] | None = None


class Explainer:
    """Makes maps of a model for images and classes.

    For evaluation an explainer is called, and leaves no trace in the model. For losses there are two entries, both with maps
    that can be trained through: `from_output`, on the features and logits that a step already has (one forward), where the
    explainer needs no more than those; and `from_model`, which runs the forwards that it needs, in eval mode.

    Write `explain` (in eval mode, float32, under whatever grad mode the caller has) and, where the map has a derivative,
    `from_output` or `from_model`.

    Attributes:
        signed: whether maps have values of both signs.
        tap: the feature that it reads; None where it reads none.
        compares: whether it compares with other images, its `reference`.
        reference: images that it compares with; None where it needs none or has not been given any yet.
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
            target: labels or other classes, one for all, or None for the model's own top-1.

        Raises:
            UserError: no images, NaN, another device, a class that the model does not have, a tap that gives no map.
        """
        if not isinstance(model, Model):
            model = as_model(model, size=(int(images.shape[-2]), int(images.shape[-1]))).to(images.device)
        with quietly(model):
            return self.explain(model, checked(model, images), target)

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        raise NotImplementedError

    def classwise(self, model: Model, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes i j"]:
        """The maps of all classes of each image, raw; leaves no trace, as a call does."""
        classes = range(len(model.classes))
        return torch.stack([self(model, images, number).maps for number in classes], 1)

    def attach(self, model: Model) -> None:
        """Get a model ready for `from_output` on what it returns: once, before."""
        if self.tap is None:
            return
        model.tap(self.tap)

    def from_output(
        self, output: Output, target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b h w"]:
        """Maps from the step's own features and logits; with `create_graph`, maps that a loss can train through.

        The output must come from a model that taps `self.tap`, with a graph from there to the logits. The maps use the
        step's own statistics: in train mode, batch norm makes them depend on the batch.
        """
        if type(self).from_model is Explainer.from_model:
            raise UserError(f"{type(self).__name__} has no derivative that a loss could use")
        raise UserError(f"{type(self).__name__} needs forwards of its own: from_model(model, images, target)")

    def classwise_from_output(self, output: Output, *, create_graph: bool = True) -> Float[Tensor, "b classes i j"]:
        """The maps of all classes of each image, as `from_output`'s."""
        classes = range(output.logits.shape[1])
        return torch.stack([self.from_output(output, number, create_graph=create_graph) for number in classes], 1)

    def from_model(
        self, model: Model, images: Float[Tensor, "b c h w"], target: Target = None, *, create_graph: bool = True
    ) -> Float[Tensor, "b i j"]:
        """Maps that a loss can train through, from forwards of their own: in eval mode, so that statistics stay."""
        if self.tap is None:
            raise UserError(f"{type(self).__name__} has no derivative that a loss could use")
        with explaining(model), model.reading(self.tap) as tap:
            logits = model.logits(images)
            output = Output(logits, {self.tap: tap.take()})
            return self.from_output(output, target, create_graph=create_graph)


def target_of(logits: Tensor, target: Target) -> Int[Tensor, " b"]:
    """The classes to explain: those given, else the model's own top-1.

    Raises:
        UserError: a class that the model does not have, or another number of classes than images.
    """
    if target is None:
        return logits.detach().argmax(1)
    chosen = ordinary(torch.as_tensor(target, device=logits.device))
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise UserError(f"targets must be class numbers; given {chosen.dtype}")
    chosen = chosen.long().expand(len(logits)) if chosen.ndim == 0 else chosen.long()
    if chosen.shape != logits.shape[:1]:
        raise UserError(f"one target an image: {len(logits)} images, targets of shape {list(chosen.shape)}")
    if looks(chosen) and chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < logits.shape[1]):
        given = f"{int(chosen.min())} to {int(chosen.max())}"
        raise UserError(f"targets must be classes from 0 to {logits.shape[1] - 1}; given {given}")
    return chosen


def scores_of(logits: Float[Tensor, "b classes"], target: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The scalar that is explained, one per image: the logit of the target class."""
    return logits.gather(1, target[:, None])[:, 0]


def checked(model: Model, images: Tensor) -> Tensor:
    """The images, fit to be explained.

    Raises:
        UserError: what is wrong with them.
    """
    if images.ndim != 4 or images.shape[1] not in (3, model.mean.shape[1]):
        raise UserError(f"images to explain are [b 3 h w]; given {list(images.shape)}")
    if not len(images):
        raise UserError("there are no images to explain: the batch is empty")
    if not images.is_floating_point():
        raise UserError(f"images to explain are pixels in [0, 1]; given {images.dtype}: divide them by 255")
    if images.device.type != model.device.type or images.device != model.device:
        raise UserError(f"the images are on {images.device}, the model is on {model.device}: move one of them")
    if looks(images) and not images.sum().isfinite():  # one pass; which image it is, is looked for when it is needed
        broken = (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        raise UserError(f"images {', '.join(map(str, broken[:8]))} of the batch have pixels that are NaN or infinite")
    return ordinary(images).detach()


SOUND: ContextVar[bool] = ContextVar("sound", default=False)
"""Whether what is explained comes from a training step, which makes sure of it by itself."""


@contextlib.contextmanager
def known_to_be_sound() -> Iterator[None]:
    """Within, no GPU is waited for to see whether pixels are finite and classes exist.

    On a CPU that costs nothing, and is seen.
    """
    token = SOUND.set(True)
    try:
        yield
    finally:
        SOUND.reset(token)


def looks(values: Tensor) -> bool:
    """Whether values are looked at on the host, to refuse what is wrong with them."""
    return values.device.type == "cpu" or not SOUND.get()


def ordinary(values: Tensor) -> Tensor:
    """A tensor that gradients may pass: those made under `torch.inference_mode` are copied."""
    return values.clone() if values.is_inference() else values


@contextlib.contextmanager
def quietly(model: Model) -> Iterator[None]:
    """Eval mode and float32 within, and no `inference_mode`; the model and torch's random state are as before afterwards."""
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
    """What `from_model` runs in: eval mode, float32, and a graph."""
    with evaluating(model), torch.autocast(model.device.type, enabled=False), torch.enable_grad():
        yield


def chosen(model: Model, images: Tensor, target: Target) -> Int[Tensor, " b"]:
    """The classes to explain in a loss, where no logits are there yet: a forward is run for the model's own top-1 alone."""
    if target is not None:
        return target_of(images.new_empty(len(images), len(model.classes)), target)
    with explaining(model), torch.no_grad():
        return model.logits(images).argmax(1)


def in_chunks(
    explain: Callable[[Model, Tensor, Tensor | None], Explanation],
    model: Model,
    images: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"] | None = None,
    *,
    chunk: int = 64,
    done: Callable[[int], object] = lambda count: None,
) -> Explanation:
    """Explain many images, some at a time, on the model's device; the result is on the CPU. `done` hears of each chunk."""
    some = images.split(chunk)
    targets = [None] * len(some) if target is None else [part.to(model.device) for part in target.split(chunk)]
    parts = []
    for part, aim in zip(some, targets, strict=True):
        parts.append(explain(model, part.to(model.device), aim))
        done(len(part))
    residuals = [part.residual.cpu() for part in parts if part.residual is not None]
    return Explanation(
        torch.cat([part.maps.cpu() for part in parts]),
        torch.cat([part.logits.cpu() for part in parts]),
        torch.cat([part.target.cpu() for part in parts]),
        torch.cat(residuals) if residuals else None,
    )
