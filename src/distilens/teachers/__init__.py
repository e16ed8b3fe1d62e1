"""Teachers: anything that answers a batch, `teacher(batch, needs) -> Answer`.

`LiveTeacher` runs a model. `StoredTeacher` reads recorded answers. `FOLLOW` has the ways to combine several teachers. `CONTROLS`
has control teachers, which wrap any of these.
"""

from collections.abc import Sequence

from distilens.core import Teacher
from distilens.foundation.notation import Registry
from distilens.teachers.best_explained import BestExplainedTeacher
from distilens.teachers.controls import MisregisteredTeacher, PermutedTeacher, RandomFeatureTeacher, RandomMapTeacher
from distilens.teachers.live import LiveTeacher, nobody
from distilens.teachers.mean import MeanTeacher, RandomTeacher
from distilens.teachers.several import Several
from distilens.teachers.stored import StoredTeacher
from distilens.teachers.weighted import AdaptiveTeacher, MeanProbabilitiesTeacher

ANSWERS = Registry("answers", {"live": "distilens.teachers.stored:live", "stored": "distilens.teachers.stored:stored"})

FOLLOW = Registry(
    "way to follow several teachers",
    {
        "adaptive": "distilens.teachers.weighted:AdaptiveTeacher",
        "best_explained": "distilens.teachers.best_explained:BestExplainedTeacher",
        "mean": "distilens.teachers.mean:MeanTeacher",
        "mean_probabilities": "distilens.teachers.weighted:MeanProbabilitiesTeacher",
        "random": "distilens.teachers.mean:RandomTeacher",
    },
)

CONTROLS = Registry(
    "control",
    {
        "permuted": "distilens.teachers.controls:PermutedTeacher",
        "misregistered": "distilens.teachers.controls:MisregisteredTeacher",
        "random_maps": "distilens.teachers.controls:RandomMapTeacher",
        "random_features": "distilens.teachers.controls:RandomFeatureTeacher",
    },
)


def as_one(teachers: Sequence[Teacher], follow: str | None, control: str | None = None) -> Teacher:
    """Combine teachers into one, by the notation `follow` if there are several, and wrap them in a control if one is named."""
    teacher = FOLLOW.build(follow, teachers) if follow else teachers[0]
    return CONTROLS.build(control, teacher) if control else teacher


def following(follow: str | None, count: int) -> Several | None:
    """The combination of several teachers before they exist, to ask for its needs. None if there is a single teacher."""
    return FOLLOW.build(follow, [nobody] * count) if follow else None


__all__ = [
    "ANSWERS",
    "CONTROLS",
    "FOLLOW",
    "AdaptiveTeacher",
    "BestExplainedTeacher",
    "LiveTeacher",
    "MeanProbabilitiesTeacher",
    "MeanTeacher",
    "MisregisteredTeacher",
    "PermutedTeacher",
    "RandomFeatureTeacher",
    "RandomMapTeacher",
    "RandomTeacher",
    "StoredTeacher",
    "as_one",
    "following",
    "nobody",
]
