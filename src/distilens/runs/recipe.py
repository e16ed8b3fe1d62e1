"""The recipe of a run: one section per table of the TOML file (`recipe_file.py` reads it)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import tomlkit
from pydantic import Field

from distilens.foundation.settings import Count, Kind, Overrides, Part, Parts, Section, resolve_section
from distilens.measure.transfer.settings import CompareSettings
from distilens.training.settings import Training


class TeacherSettings(Section):
    """The large model. It is trained, unless it is loaded with the data's classes; `finetune` trains a loaded one.

    `answers` says whether it answers each step (`live`) or its answers are recorded once (`stored`).

    `others` are further teachers with the same settings. `follow` says how all of them answer as one (`mean` by default).
    `data` is what the teachers are trained on, by default the run's data; `data_of_others` names other data for the others, one
    each, for teachers that have each seen a part only.
    `control` removes something from the answers.
    """

    model: Annotated[Part, Kind("models")]
    others: Annotated[Parts, Kind("models")] = ()
    follow: Annotated[Part, Kind("follow")] | None = None
    control: Annotated[Part, Kind("controls")] | None = None
    data: Annotated[Part, Kind("data")] | None = None
    data_of_others: Annotated[Parts, Kind("data")] = ()
    methods: Annotated[Parts, Kind("methods")] = ("ce",)
    finetune: Literal["none", "head", "all"] | None = None
    answers: Annotated[Part, Kind("answers")] = "live"
    train: Annotated[dict[str, Any], Overrides(Training)] = Field(default_factory=dict)

    @property
    def models(self) -> dict[str, str]:
        """All teachers, by their folder in the run: `teacher`, `teacher-2`, `teacher-3`, ..."""
        return {"teacher": self.model, **{f"teacher-{number}": part for number, part in enumerate(self.others, 2)}}

    @property
    def joined(self) -> str | None:
        """How several teachers answer as one; None for a single teacher."""
        return self.follow or "mean" if self.others else None


class StudentSettings(Section):
    """The small model and the methods that train it."""

    model: Annotated[Part, Kind("models")]
    methods: Annotated[Parts, Kind("methods")] = ("ce:weight=0.1", "kd:temperature=4,weight=0.9")


class BaseSettings(Section):
    """The control: the same student, seed and schedule, without a teacher."""

    methods: Annotated[Parts, Kind("methods")] = ("ce",)


class ExplainSettings(Section):
    """The explainers, and the number of test images for the pictures (`images`) and for the similarity of maps (`measured`)."""

    explainers: Annotated[Parts, Kind("explainers")] = ("gradcam", "ig:steps=32")
    images: Count = 32
    measured: Count = 200


class MeasureSettings(Section):
    """What is measured beside the usual scores: the metric on corrupted test images (`distilens list corruptions`)."""

    corruptions: Annotated[Parts, Kind("corruptions")] = ()


class ExportSettings(Section):
    """The files of the student, made and verified at the end of a run (`distilens export`).

    `formats` are the files' formats. `quantize="int8"` also makes INT8 files. They may lose `tolerance` points of accuracy; if
    they lose more, `finetune` epochs of distillation with INT8 rounding follow. `pixels` is the type of the input. With `maps`
    the files also return class activation maps. `images` is the number of test images whose maps are compared.
    """

    formats: Annotated[Parts, Kind("formats")] = ("onnx",)
    quantize: Literal["none", "int8"] = "none"
    pixels: Literal["float", "uint8"] = "float"
    maps: bool = False
    tolerance: Annotated[float, Field(ge=0)] = 0.5
    finetune: Annotated[int, Field(ge=0)] = 0
    images: Annotated[int, Field(ge=0)] = 32


class Recipe(Section):
    """The complete description of a run."""

    name: Annotated[str, Field(pattern=r"^[^/\\\\]+$")] = "run"
    seed: int = 0
    note: str = ""
    data: Annotated[Part, Kind("data")]
    teacher: TeacherSettings | None = None
    student: StudentSettings
    base: BaseSettings = BaseSettings()
    train: Training = Training()
    explain: ExplainSettings = ExplainSettings()
    measure: MeasureSettings | None = None
    compare: CompareSettings | None = None
    export: ExportSettings | None = None

    @property
    def teacher_training(self) -> Training:
        """`[train]` with the overrides of `[teacher.train]`."""
        return Training(**{**self.train.model_dump(), **(self.teacher.train if self.teacher else {})})

    @property
    def teacher_data(self) -> str:
        return self.data_of("teacher")

    def data_of(self, role: str) -> str:
        """The data that a model is trained on: those of a teacher may differ from the run's."""
        if self.teacher is None or role in ("base", "student"):
            return self.data
        others = dict(zip(list(self.teacher.models)[1:], self.teacher.data_of_others, strict=False))
        return others.get(role) or self.teacher.data or self.data

    def resolved(self) -> dict[str, Any]:
        """Plain data with every option of every part written out, for the run folder."""
        content = self.model_dump(exclude_none=True)
        if self.teacher:
            content["teacher"]["train"] = self.teacher_training.model_dump(exclude_none=True)
            content["teacher"] |= {"follow": self.teacher.joined} if self.teacher.joined else {}
        return resolve_section(Recipe, content)

    def to_toml(self) -> str:
        """The resolved recipe as TOML; reading it gives the same run."""
        return tomlkit.dumps(self.resolved())
