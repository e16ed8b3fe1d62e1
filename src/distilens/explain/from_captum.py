"""Captum's attribution methods as explainers."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distilens.explain.activation import full
from distilens.explain.explanation import Explainer, Explanation, Scalar, Target, classes_of, scores_of, target_of
from distilens.foundation.errors import UserError, nearest
from distilens.models.model import Model
from distilens.models.taps import grid

RULES = ("LRP", "LayerLRP")
"""Attributions with a rule per kind of module: they get the bare network."""


class CaptumExplainer(Explainer):
    """Any attribution of the library Captum by its own name, such as `captum:DeepLift`, summed over the colour channels.

    Options are those of its `attribute` (`captum:IntegratedGradients,n_steps=20`); a layer attribution takes `tap=`.
    Maps are signed. Attributions that need baselines compare with `reference` images. LRP attributes to the normalised pixels, on
    the bare network. Random attributions use one fixed seed per batch, so their maps depend on the batch. Install Captum with
    `pip install 'distilens[captum]'`. A loss cannot use these maps: they have no derivative.

    Source: Kokhlikyan et al. 2020 (arXiv 2009.07896).
    """

    signed = True

    def __init__(self, name: str, /, *, tap: str | None = None, **options: Any):
        self.method = attribution(name)
        self.name, self.tap, self.options = name, tap, options
        needs_layer = "layer" in required_parameters(self.method.__init__)
        if needs_layer != (tap is not None):
            raise UserError(f"captum:{name} {'needs' if needs_layer else 'takes no'} tap=")
        self.compares = "baselines" in required_parameters(self.method.attribute)
        known = set(inspect.signature(self.method.attribute).parameters) - {"self", "inputs", "target", "kwargs"}
        for key in options:
            if key not in known:
                raise UserError(
                    f"unknown option {key!r} of captum:{name}.{nearest(key, sorted(known))} Options: {', '.join(sorted(known))}"
                )

    def explain(self, model: Model, images: Tensor, target: Target) -> Explanation:
        with torch.no_grad():
            logits = model.logits(images)
        by_rules = self.name in RULES
        if by_rules:
            target = classes_of(logits, target, model.task, f"captum:{self.name}")
        target = target_of(logits, target, model.task)
        if model.task.dense and isinstance(target, Tensor):
            classes_of(logits, target, model.task, f"captum:{self.name}")
        forward = model.network if by_rules else Logits(model, None if isinstance(target, Tensor) else target)
        place = () if self.tap is None else (model.find(model.path_of(self.tap))[1],)
        options = dict(self.options)
        if self.compares:
            if self.reference is None:
                raise UserError(
                    f"captum:{self.name} compares with reference images: set explainer.reference to [n c h w]"
                )
            options["baselines"] = self.reference.to(images)
        if "target" in inspect.signature(self.method.attribute).parameters:  # LayerActivation has no target
            options["target"] = target if isinstance(target, Tensor) else None
        with torch.enable_grad(), tidying(model):
            pixels = (model.prepare(images) if by_rules else images).detach().clone().requires_grad_()
            try:
                result = self.method(forward, *place).attribute(pixels, **options)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
                raise UserError(f"captum:{self.name} does not work for {model.name}: {error}") from error
        result = result[0] if isinstance(result, tuple) else result
        if not isinstance(result, Tensor) or len(result) != len(images):
            raise UserError(
                f"captum:{self.name} does not return one map per image: it returned {type(result).__name__}"
            )
        maps = grid(result.detach(), model.size).sum(1)
        return Explanation.of(full(maps), logits, target)

    def from_output(self, *arguments: Any, **options: Any) -> Tensor:
        raise UserError(f"captum:{self.name} has no derivative that a loss could use: use an explainer of distilens")

    from_model = from_output


@contextlib.contextmanager
def tidying(model: Model) -> Iterator[None]:
    """Within, torch and NumPy have a fixed seed. Afterwards NumPy's random state and the modules are as before.

    Captum warns about hooks that it removes again; these warnings are hidden. If its LRP fails at a module without a rule, it
    leaves rules and activations as attributes of earlier modules; these are deleted.
    """
    torch.manual_seed(0)  # `quietly` restores torch's state
    state = np.random.get_state()
    np.random.seed(0)
    known = {module: set(vars(module)) for module in model.modules()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting .*hooks")
            yield
    finally:
        np.random.set_state(state)
        for module, names in known.items():
            for name in set(vars(module)) - names:
                delattr(module, name)


class Logits(nn.Module):
    """A model as Captum expects it: a module from images to logits, or to the numbers of a function of them."""

    def __init__(self, model: Model, function: Scalar | None = None):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model.logits(images)
        return logits if self.function is None else scores_of(logits, self.function)


def required_parameters(function: Any) -> set[str]:
    """The parameters without a default."""
    parameters = inspect.signature(function).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    return needed - {"self"}


def attribution(name: str) -> Any:
    """The Captum class of that name.

    Raises:
        UserError: Captum is not installed, or has no such attribution.
    """
    try:
        from captum import attr
    except ImportError:
        raise UserError("captum:NAME needs Captum: pip install 'distilens[captum]'") from None
    known = [
        key
        for key, value in vars(attr).items()
        if inspect.isclass(value)
        and issubclass(value, attr.Attribution)
        and hasattr(value, "attribute")
        and required_parameters(value.__init__) <= {"forward_func", "model", "layer"}
        and required_parameters(value.attribute) <= {"inputs", "baselines"}
    ]
    if name not in known:
        raise UserError(f"Captum has no attribution {name!r}.{nearest(name, known)} Known: {', '.join(sorted(known))}")
    return getattr(attr, name)
