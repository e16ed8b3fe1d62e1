"""How models are compared: the `[compare]` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from distilens.foundation.errors import UserError
from distilens.foundation.settings import Count, Kind, Part, Section, as_list, explain_errors, part_problems, toml_value


class CompareSettings(Section):
    """How models are compared: the `[compare]` section.

    Attributes:
        taps: the levels; by default the last grids that all models have, and the logits.
        samples: test images that are scored, equally many per class.
        features: `pooled` over places, or `flat`.
        explained: score explained images (see `most_relevant`) instead of whole images.
        embeddings: the class embeddings that describe the task.
        full: also remove the other model's features from the task.
        biased: the statistic of the paper's code.
        permutations: number of permutations for p-values; 0 assumes a distribution instead.
        reference: size of the reference set that maps are explained against.
        sets: further reference sets, to measure the stability of maps.
        images: images whose maps are shown.
        measured: images whose maps are measured.
    """

    taps: Annotated[tuple[str, ...], BeforeValidator(as_list)] = ()
    samples: Annotated[int, Field(ge=4)] = 2000
    features: Literal["pooled", "flat"] = "pooled"
    explained: bool = False
    embeddings: Annotated[Part, Kind("embeddings")] = "one_hot"
    full: bool = False
    biased: bool = False
    permutations: Annotated[int, Field(ge=0)] = 0
    reference: Annotated[int, Field(ge=4)] = 512
    sets: Annotated[int, Field(ge=1)] = 3
    images: Count = 24
    measured: Count = 100


def compare_settings(given: Mapping[str, Any]) -> CompareSettings:
    """Settings from a dict.

    Raises:
        UserError: all errors in the settings, in one message.
    """
    problems = part_problems(CompareSettings, given, "compare.")
    try:
        part = CompareSettings(**given)
        if not problems:
            return part
    except ValidationError as error:
        problems += explain_errors(error, CompareSettings, "compare.")
    raise UserError("; ".join(problems))


def settings_of(changes: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as a dict.

    Raises:
        UserError: a text that is not `key=value`.
    """
    settings = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set takes key=value; given {change!r}")
        settings[key.strip().removeprefix("compare.")] = toml_value(value)
    return settings
