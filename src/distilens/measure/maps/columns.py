"""The columns of a gallery: the explainers under unique short names, and the floors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distilens.data.splits import Data
from distilens.explain import EXPLAINERS, Explainer, reference_images
from distilens.explain.controls import CentreMap, RandomMap
from distilens.explain.from_captum import CaptumExplainer
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Spec, safe

FLOORS = ("random", "random:grid=7", "centre")
"""Control maps that do not depend on the model; every table includes them."""


@dataclass(frozen=True)
class Part:
    """One explainer of a gallery: label, full notation, whether its maps are signed, whether it is a floor."""

    label: str
    notation: str
    signed: bool
    floor: bool
    explain: Explainer


def named(explainers: Sequence[str | Explainer]) -> dict[str, Part]:
    """The explainers and the floors by label, in order, without duplicates.

    Raises:
        UserError: all errors in the explainers, in one message.
    """
    unique: dict[str, tuple[Spec, Spec, Explainer]] = {}  # by full notation: (short spec, full spec, explainer)
    problems = []
    for given in [*explainers, *FLOORS]:
        try:
            if isinstance(given, str):
                explain, full = EXPLAINERS.build(given), EXPLAINERS.resolve(given)
            elif isinstance(given, Explainer):
                explain, full = given, spec_of(given)
            else:
                raise UserError(f"an explainer is a notation or an Explainer; given a {type(given).__name__}")
        except UserError as error:
            problems.append(str(error))
            continue
        unique.setdefault(str(full), (Spec(full.name, full.argument, unusual(explain, full)), full, explain))
    if problems:
        raise UserError("\n".join(problems))
    if not explainers:
        raise UserError("there is no explainer: name some, such as gradcam and ig")
    briefs = [safe(str(Spec(short.name, short.argument))) for short, _, _ in unique.values()]
    parts: dict[str, Part] = {}
    for brief, (short, full, explain) in zip(briefs, unique.values(), strict=True):
        label = brief if briefs.count(brief) == 1 else safe(str(short))
        if label in parts:
            label = next(name for number in range(2, 1000) if (name := f"{label}-{number}") not in parts)
        parts[label] = Part(label, str(full), explain.signed, isinstance(explain, RandomMap | CentreMap), explain)
    return parts


def spec_of(explain: Explainer) -> Spec:
    """The notation of an explainer made in Python, with the options that it stores as attributes of the same name."""
    kind = type(explain)
    target = f"{kind.__module__}:{kind.__qualname__}"
    name = next((name for name, entry in EXPLAINERS.entries.items() if entry.target == target), kind.__name__)
    if isinstance(explain, CaptumExplainer):
        return Spec(name, explain.name, {"tap": explain.tap, **explain.options})
    plain, options = (str, int, float, bool, type(None), list, tuple), inspect.signature(kind).parameters
    kept = {key: value for key, value in vars(explain).items() if key in options and isinstance(value, plain)}
    return Spec(name, None, kept)


def unusual(explain: Explainer, full: Spec) -> dict[str, Any]:
    """The options that differ from their defaults."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(type(explain)).parameters.items()}
    return {key: value for key, value in full.options.items() if key not in defaults or defaults[key] != value}


def with_references(part: Part, data: Data) -> Part:
    """The part with training images as its explainer's reference if it needs any; the given explainer does not change."""
    if not part.explain.compares or part.explain.reference is not None:
        return part
    explain = copy.copy(part.explain)
    explain.reference = reference_images(data)
    return replace(part, explain=explain)
