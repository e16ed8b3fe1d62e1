"""How a model is trained: the `[train]` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BeforeValidator, Field, model_validator

from distilens.foundation.settings import Count, Kind, Part, Section, as_list, resolve_section

TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class Training(Section):
    """How a model is trained: `[train]`, and overrides in `[teacher.train]`.

    With `auto`, `precision` and `channels_last` depend on the processor. `variants` is the number of augmented variants per
    image (0: a new one each epoch; 16 by default if the teacher's answers are stored). Their seed is `variant_seed`, not the
    run's seed: so all seeds of an experiment see the same pictures and can read the same stored answers. With
    `sampling="balanced"` an epoch shows the same number of images per class, and repeats those of rare classes.
    `optimizer="auto"` and `clip="auto"` are the defaults for the network (`training/defaults.py`); `clip=0` turns clipping
    off. `select` says which weights are kept: the `best` epoch on validation, or the `last`. `validate_every=10` validates
    after every tenth epoch and after the last: with few training images, validation can take longer than training. `balance`
    weights the terms of the loss: by their weights (`fixed`), or by their gradients or losses (`training/balance.py`).
    `micro_batch=16` computes a batch in parts of at most 16 images, whose gradients add up, if it does not fit in memory. Batch
    norms then see one part at a time, and so do methods that compare the images of a batch.
    `compile` compiles the student's network for training. On a GPU, `graphs` also replays its kernels as CUDA graphs: this
    helps small networks, whose kernels run shorter than their launches. Images are `resident` in the device's memory if they
    fit; otherwise `workers` processes read them. `tracker` names services that show the training live: `tensorboard`,
    `wandb`, `mlflow` (`training/trackers.py`).
    """

    epochs: Count = 10
    batch_size: Count = 128
    micro_batch: Count | None = None
    optimizer: Annotated[Part, Kind("optimizers")] = "auto"
    schedule: Annotated[Part, Kind("schedules")] = "one_cycle"
    augment: Annotated[Part, Kind("augments")] = "crop"
    sampling: Literal["uniform", "balanced"] = "uniform"
    variants: Annotated[int, Field(ge=0)] = 0
    variant_seed: Annotated[int, Field(ge=0)] = 0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip: Annotated[float, Field(ge=0)] | Literal["auto"] | None = "auto"
    balance: Annotated[Part, Kind("balances")] = "fixed"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool | Literal["graphs"] = False
    select: Literal["best", "last"] = "best"
    validate_every: Count = 1
    log_every: Count = 20
    keep_every: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 2
    resident: bool | Literal["auto"] = "auto"
    tracker: Annotated[tuple[TrackerName, ...], BeforeValidator(as_list)] = ()

    @model_validator(mode="before")
    @classmethod
    def takes_older_recipes(cls, given: Any) -> Any:
        """Read `tensorboard=true`, which older recipes have for `tracker="tensorboard"`."""
        if not isinstance(given, Mapping) or "tensorboard" not in given:
            return given
        kept = {name: value for name, value in given.items() if name != "tensorboard"}
        asked = as_list(kept.get("tracker", ()))
        wanted = given["tensorboard"] in (True, "true", "True", 1)
        return {**kept, "tracker": [*asked, "tensorboard"] if wanted and "tensorboard" not in asked else asked}

    @property
    def shown(self) -> int:
        """The number of variants per image that all epochs show."""
        return min(self.variants or self.epochs, self.epochs)

    @property
    def together(self) -> int:
        """The least number of images that a network sees at once."""
        return self.batch_size // -(-self.batch_size // (self.micro_batch or self.batch_size))

    @property
    def reading(self) -> dict[str, Any]:
        """How `Batches` reads images; this does not change the images."""
        return {"workers": self.workers, "resident": None if self.resident == "auto" else self.resident}

    def decisive(self) -> dict[str, Any]:
        """The settings that the weights depend on, with every option written out: not those of the log or of reading images."""
        # these settings are newer than some runs, whose keys must stay valid
        usual = {"sampling"} if self.sampling == "uniform" else set()
        if self.micro_batch is None:
            usual.add("micro_batch")
        # the last weights are the same, however often they are scored
        if self.validate_every == 1 or self.select == "last":
            usual.add("validate_every")
        outside = {"log_every", "keep_every", "workers", "resident", "tracker"}
        return resolve_section(Training, self.model_dump(exclude=outside | usual))


class TrainingOptions(TypedDict, total=False):
    """The settings of `Training` as keywords, for editors and type checkers; `lr` stands for `optimizer="auto:lr=..."`."""

    lr: float
    epochs: int
    batch_size: int
    micro_batch: int | None
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
    validate_every: int
    log_every: int
    keep_every: int
    workers: int
    resident: bool | Literal["auto"]
    tracker: str | Sequence[str]
