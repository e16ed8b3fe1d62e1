"""Add seeds to the rows of a study until every question is decided. Looking after every seed does not raise the error.

The looks are at validation scores. The intervals of `judge_gains` hold together at all looks. So they also hold on the test
split, at whatever number of seeds the study stops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from distilens.foundation.metric import Metric
from distilens.studies.enough_seeds import Decision, decide, repeated_interval
from distilens.studies.statistics import ERROR
from distilens.studies.study import Question, Study
from distilens.studies.values import metric_of, values_of
from distilens.studies.work import failures, train_study


def train_until(study: Study, *, jobs: int = 1, console: Console | None = None) -> Study:
    """Train what is missing of a study, then add seeds to the rows of undecided questions; returns the study with its seeds.

    A study without `until` gets no further seeds. Arguments and errors as in `train_study`.
    """
    train_study(study, jobs=jobs, console=console)
    while (larger := with_next_seeds(study)).more != study.more:
        study = larger
        train_study(study, jobs=jobs, console=console)
    return study


def with_next_seeds(study: Study) -> Study:
    """The study with one more seed for both rows of every undecided question, up to the largest number of seeds."""
    more = list(study.more)
    for question in undecided(study):
        rows = [study.row(question.row), study.row(question.against)]
        shared = min(len(study.seeds_of(row)) for row in rows)
        seed = max(study.seeds) + 1 + shared - len(study.seeds)
        if shared < most_seeds(study):
            more += [
                (row.name, seed) for row in rows if seed not in study.seeds_of(row) and (row.name, seed) not in more
            ]
    return replace(study, more=tuple(more))


def undecided(study: Study) -> list[Question]:
    """The questions that no look has decided yet. A row that cannot be trained leaves its questions open for ever."""
    if study.until is None:
        return []
    metric, failed = metric_of(study), failures(study)
    values = {row.name: values_of(study, row, metric, "validation") for row in study.rows}
    return [
        question
        for question in study.questions
        if not {question.row, question.against} & failed.keys()
        and all(decision == "undecided" for decision in decisions(study, gains(question, values, metric), metric))
    ]


def gains(question: Question, values: Mapping[str, Mapping[Any, float | None]], metric: Metric) -> list[float]:
    """What the row gains over the other with each seed that both have, in the order of the seeds; positive if it is better."""
    ours, theirs = values[question.row], values[question.against]
    sign = 1 if metric.higher_is_better else -1
    pairs = [(value, theirs.get(seed)) for seed, value in ours.items()]
    return [sign * (ours - theirs) for ours, theirs in pairs if ours is not None and theirs is not None]


def decisions(study: Study, found: Sequence[float], metric: Metric) -> list[Decision]:
    """What each look at a question says, from the study's first number of seeds on."""
    return [decide(found[:count], **rule(study, count, metric)) for count in range(len(study.seeds), len(found) + 1)]


def judge_gains(study: Study, found: Sequence[float], metric: Metric) -> dict[str, Any]:
    """The last look at a question: the interval, which holds together with those of all earlier looks, and the decision.

    There are no p-values: those of a fixed number of seeds would be too small.
    """
    options = rule(study, len(found), metric)
    interval = repeated_interval(found, **{key: value for key, value in options.items() if key != "points"})
    nothing = dict.fromkeys(("p", "p by Holm", "check", "more seeds"))
    return {**interval.plain(), **nothing, "decision": decide(found, **options)}


def rule(study: Study, count: int, metric: Metric) -> dict[str, Any]:
    """The arguments of `decide` at a number of seeds. The questions share the error (Bonferroni)."""
    assert study.until is not None
    return {
        "points": study.until.points / 100 if metric.is_share else study.until.points,
        "looks": range(len(study.seeds), count),
        "maximum": most_seeds(study),
        "level": ERROR / len(study.questions),
    }


def most_seeds(study: Study) -> int:
    """The largest number of seeds of a row."""
    return max(study.until.most if study.until else 0, len(study.seeds))
