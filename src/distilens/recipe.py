"""What a recipe says of a run: frozen data classes, a table of the TOML file each (`recipe_file.py` reads it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import tomlkit
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from distilens.specs import Registry, Spec, split, unbracket

Count = Annotated[int, Field(ge=1)]


def as_notation(part: Any) -> Any:
    return str(Spec.parse(part)) if isinstance(part, Mapping) else part


def as_list(parts: Any) -> Any:
    return [unbracket(part) for part in split(unbracket(parts), whole=parts)] if isinstance(parts, str) else parts


TrackerName = Literal["tensorboard", "wandb", "mlflow"]
Part = Annotated[str, BeforeValidator(as_notation)]
Parts = Annotated[tuple[Part, ...], BeforeValidator(as_list)]


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Section):
    """How a model is trained: `[train]`, and overrides in `[teacher.train]`.

    `precision` and `channels_last` are chosen for the processor when `auto`. `variants` is the number of augmentations of
    an image (0: a new one each epoch; 16 by default where the teacher's answers are stored). They are drawn from
    `variant_seed`, which is not the run's seed: so all seeds of an experiment see the same pictures, and a teacher's stored
    answers serve them all. With `sampling="balanced"` an epoch shows as many images of each class, those of rare ones
    several times. `optimizer="auto"` and `clip="auto"` are what is usual for the network (`usual.py`); `clip=0` clips
    nothing. `select` says which weights are kept: the `best` epoch on validation, or the `last`. `balance` weighs the terms
    of the loss: as their weights say (`fixed`), or by what their gradients are (`balance.py`). `compile` compiles the
    student's network for training; `graphs` also replays its kernels as CUDA graphs, where there is a GPU: for small
    networks, whose kernels take less time than their launches. Images are `resident` in the device's memory where they fit,
    or are read by `workers` processes. `tracker` names services that show the training as it goes: `tensorboard`, `wandb`,
    `mlflow` (`trackers.py`).
    """

    epochs: Count = 10
    batch_size: Count = 128
    optimizer: Part = "auto"
    schedule: Part = "one_cycle"
    augment: Part = "crop"
    sampling: Literal["uniform", "balanced"] = "uniform"
    variants: Annotated[int, Field(ge=0)] = 0
    variant_seed: Annotated[int, Field(ge=0)] = 0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Annotated[float, Field(ge=0)] | Literal["auto"] | None = "auto"
    balance: Part = "fixed"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool | Literal["graphs"] = False
    select: Literal["best", "last"] = "best"
    log_every: Count = 20
    keep_every: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 2
    resident: bool | Literal["auto"] = "auto"
    tracker: Annotated[tuple[TrackerName, ...], BeforeValidator(as_list)] = ()

    @model_validator(mode="before")
    @classmethod
    def takes_older_recipes(cls, given: Any) -> Any:
        """`tensorboard=true` is what older recipes have for `tracker="tensorboard"`."""
        if not isinstance(given, Mapping) or "tensorboard" not in given:
            return given
        kept = {name: value for name, value in given.items() if name != "tensorboard"}
        asked = as_list(kept.get("tracker", ()))
        wanted = given["tensorboard"] in (True, "true", "True", 1)
        return {**kept, "tracker": [*asked, "tensorboard"] if wanted and "tensorboard" not in asked else asked}

    @property
    def shown(self) -> int:
        """How many variants of an image all epochs together show."""
        return min(self.variants or self.epochs, self.epochs)

    @property
    def reading(self) -> dict[str, Any]:
        """How images are read, which changes nothing of what is read: for `Batches`."""
        return {"workers": self.workers, "resident": None if self.resident == "auto" else self.resident}

    def decisive(self) -> dict[str, Any]:
        """What the weights depend on, with every option written out: nothing of the log, nor who reads the images."""
        usual = {"sampling"} if self.sampling == "uniform" else set()  # it is younger than runs whose keys must hold
        outside = {"log_every", "keep_every", "workers", "resident", "tracker"}
        return with_options(self.model_dump(exclude=outside | usual))


class TrainingOptions(TypedDict, total=False):
    """The settings of `Training` as keywords, for editors and type checkers; `lr` stands for `optimizer="auto:lr=..."`."""

    lr: float
    epochs: int
    batch_size: int
    optimizer: str
    schedule: str
    augment: str
    sampling: Literal["uniform", "balanced"]
    variants: int
    variant_seed: int
    ema: float
    clip: float | Literal["auto"] | None
    balance: str
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    channels_last: bool | Literal["auto"]
    compile: bool | Literal["graphs"]
    select: Literal["best", "last"]
    log_every: int
    keep_every: int
    workers: int
    resident: bool | Literal["auto"]
    tracker: str | Sequence[str]


class TeacherPart(Section):
    """The large model. Trained unless it is loaded with the data's classes; `finetune` trains a loaded one.

    `answers` says whether it answers each step (`live`) or its answers are recorded once (`stored`).

    `others` are further teachers, with the same settings; `follow` says how all of them answer as one (`mean` by default), and
    `control` takes something from the answers.
    """

    model: Part
    others: Parts = ()
    follow: Part | None = None
    control: Part | None = None
    data: Part | None = None
    methods: Parts = ("ce",)
    finetune: Literal["none", "head", "all"] | None = None
    answers: Part = "live"
    train: dict[str, Any] = {}

    @property
    def models(self) -> dict[str, str]:
        """All teachers, by the folder of the run that they are in: `teacher`, `teacher-2`, `teacher-3`, ..."""
        return {"teacher": self.model, **{f"teacher-{number}": part for number, part in enumerate(self.others, 2)}}

    @property
    def joined(self) -> str | None:
        """How several teachers answer as one; None where there is one."""
        return self.follow or "mean" if self.others else None


class StudentPart(Section):
    """The small model and what guides it."""

    model: Part
    methods: Parts = ("ce:weight=0.1", "kd:temperature=4,weight=0.9")


class BasePart(Section):
    """The control: the same student, seed and schedule, without a teacher."""

    methods: Parts = ("ce",)


class ExplainPart(Section):
    """Which maps are made, of how many test images for the pictures and for the likeness of maps."""

    explainers: Parts = ("gradcam", "ig:steps=32")
    images: Count = 32
    measured: Count = 200


class ComparePart(Section):
    """How models are compared: `[compare]`, where a run compares its models by itself.

    `taps` are the levels (by default the last grids that all models have, and the logits): `samples` test images, as many of
    each class, are scored there by their `features`, `pooled` over places or `flat`; of images as they are, or `explained`.
    `embeddings` say what the task is. `full` removes the other model from the task too; `biased` scores as the paper's code
    does; `permutations` count p-values instead of assuming a distribution. Maps of `images` are shown and those of `measured` are
    put to the test, each explained against `reference` images, and against `sets` other such sets.
    """

    taps: Parts = ()
    samples: Annotated[int, Field(ge=4)] = 2000
    features: Literal["pooled", "flat"] = "pooled"
    explained: bool = False
    embeddings: Part = "one_hot"
    full: bool = False
    biased: bool = False
    permutations: Annotated[int, Field(ge=0)] = 0
    reference: Annotated[int, Field(ge=4)] = 512
    sets: Annotated[int, Field(ge=1)] = 3
    images: Count = 24
    measured: Count = 100


class Recipe(Section):
    """All about a run."""

    name: Annotated[str, Field(pattern=r"^[^/\\\\]+$")] = "run"
    seed: int = 0
    note: str = ""
    data: Part
    teacher: TeacherPart | None = None
    student: StudentPart
    base: BasePart = BasePart()
    train: Training = Training()
    explain: ExplainPart = ExplainPart()
    compare: ComparePart | None = None

    @property
    def teacher_training(self) -> Training:
        """`[train]` with the overrides of `[teacher.train]`."""
        return Training(**{**self.train.model_dump(), **(self.teacher.train if self.teacher else {})})

    @property
    def teacher_data(self) -> str:
        return (self.teacher and self.teacher.data) or self.data

    def resolved(self) -> dict[str, Any]:
        """Plain data with every option of every part written out, for the run folder."""
        content = self.model_dump(exclude_none=True)
        if self.teacher:
            content["teacher"]["train"] = self.teacher_training.model_dump(exclude_none=True)
            content["teacher"] |= {"follow": self.teacher.joined} if self.teacher.joined else {}
        return with_options(content)

    def to_toml(self) -> str:
        """The resolved recipe as TOML; reading it gives the same run."""
        return tomlkit.dumps(self.resolved())


KINDS = {
    "data": "data",
    "model": "models",
    "others": "models",
    "follow": "follow",
    "control": "controls",
    "methods": "methods",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "augment": "augments",
    "balance": "balances",
    "explainers": "explainers",
    "answers": "answers",
    "embeddings": "embeddings",
}
"""Which kind of part stands under which key of a recipe."""


def registries() -> dict[str, Registry]:
    """By key of a recipe, the registry of the parts that stand under it."""
    from distilens.catalogue import registry

    return {key: registry(kind) for key, kind in KINDS.items()}


def with_options(content: Any) -> Any:
    """A recipe's plain data, or some of it, with every option of every part written out."""
    known = registries()

    def written(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: written(name, item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [written(key, item) for item in value]
        return str(known[key].resolve(value)) if key in known and isinstance(value, str) else value

    return written("", content)
