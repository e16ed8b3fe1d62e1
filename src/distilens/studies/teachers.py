"""The teachers of a study: each is trained once, and all runs read its stored answers."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from distilens.core import Model
from distilens.data.augment import AUGMENTS
from distilens.data.splits import Split
from distilens.foundation.files import write_arrays
from distilens.foundation.fingerprints import key_of
from distilens.foundation.notation import Spec
from distilens.measure import predict
from distilens.measure.accuracies import evaluation_batches
from distilens.models.saved import fingerprint_of
from distilens.runs.recipe import Recipe
from distilens.runs.recipe_file import make_recipe
from distilens.runs.run import Run, wait_and_lock
from distilens.runs.training import finetuning_of, train_teacher
from distilens.studies.study import Study
from distilens.teachers import ANSWERS

TRAINING = ("data", "data_of_others", "methods", "finetune", "train")
"""The keys of `[teacher]` that its training needs, and a trained teacher does not."""
CHOOSING = ("limit", "shots", "few", "draw", "min_images", "val_fraction", "seed")
"""The options of data that choose among the images of a set."""


def train_teachers(study: Study, console: Console | None = None) -> None:
    """Train or load every teacher of the study's rows, unless that was done before."""
    made = set()
    for row in study.rows:
        recipe = make_recipe(row.recipe)
        if recipe.teacher is None or is_trained(recipe) or (name := teacher_name(study, recipe)) in made:
            continue
        made.add(name)
        run = Run(study.folder / "runs" / name, recipe, console)
        with wait_and_lock(run):
            train_teacher(run)
            for role in recipe.teacher.models:
                shutil.rmtree(run.folder / role / "checkpoints", ignore_errors=True)


def is_trained(recipe: Recipe) -> bool:
    """Whether all teachers of a recipe are models of finished runs, used as they are."""
    part = recipe.teacher
    return part is not None and all(
        Spec.parse(model).name == "run" and finetuning_of(part, model) == "none" for model in part.models.values()
    )


def teacher_name(study: Study, recipe: Recipe) -> str:
    """The folder of a recipe's teacher in `runs`: `teacher`, and `teacher-2`, ... for rows with another one."""
    keys = list(dict.fromkeys(filter(None, (key_of_content(json.dumps(dict(row.recipe))) for row in study.rows))))
    place = keys.index(teacher_key(recipe))
    return "teacher" if place == 0 else f"teacher-{place + 1}"


@functools.cache
def key_of_content(text: str) -> str | None:
    """The key of the teachers of a recipe, given as JSON; None if none are trained. It is cached: each training asks for all."""
    recipe = make_recipe(json.loads(text))
    return None if recipe.teacher is None or is_trained(recipe) else teacher_key(recipe)


def teacher_key(recipe: Recipe) -> str:
    """A key of all that a recipe's teachers are trained from."""
    assert recipe.teacher is not None
    content = recipe.resolved()["teacher"]
    kept = {key: value for key, value in content.items() if key in ("model", "others", "methods", "finetune")}
    kept |= {"data of others": content["data_of_others"]} if content.get("data_of_others") else {}
    return key_of(kept, recipe.teacher_training.decisive(), recipe.teacher_data, recipe.seed)


def with_own_training(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe whose teacher keeps its training if `[train]` changes: its settings are written out."""
    recipe = make_recipe(content)
    if recipe.teacher is None or is_trained(recipe):
        return dict(content)
    settings = recipe.teacher_training.model_dump(mode="json", exclude_none=True)
    return {**content, "teacher": {**content["teacher"], "train": settings}}


def with_trained_teacher(study: Study, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe whose teacher is the study's trained one, with stored answers unless the recipe says otherwise."""
    recipe = make_recipe(content)
    if recipe.teacher is None:
        return dict(content)
    part = {"answers": "stored", **content["teacher"]}
    if not is_trained(recipe):
        folder = study.folder / "runs" / teacher_name(study, recipe)
        models = [str(Spec("run", str(folder), {"part": role})) for role in recipe.teacher.models]
        part = {key: value for key, value in part.items() if key not in TRAINING} | {"model": models[0]}
        part |= {"others": models[1:]} if len(models) > 1 else {}
    return {**content, "teacher": part}


def with_own_answers(study: Study, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe that records its answers apart if it shows other pictures than the study's first row.

    The folder beside the teacher's weights holds the answers for one augmentation. Rows with another one share a folder in the
    study. Mixing shows pairs of the run's own images, so there each draw of them has a folder.
    """
    recipe, usual = make_recipe(content), make_recipe(study.rows[0].recipe)
    if recipe.teacher is None:
        return dict(content)
    answers = ANSWERS.resolve(recipe.teacher.answers)
    shown = shown_by(recipe)
    if answers.name != "stored" or answers.options.get("path") or shown == shown_by(usual):
        return dict(content)
    folder = study.folder / "answers" / key_of(list(recipe.teacher.models.values()), shown)[:8]
    return {**content, "teacher": {**content["teacher"], "answers": str(answers.replaced(path=str(folder)))}}


def shown_by(recipe: Recipe) -> list[Any]:
    """What the pictures of a recipe's student depend on: the augmentation, its seed, and the data.

    Which images are chosen matters only if they are mixed: answers are stored by the index in the whole set.
    """
    augment, data = AUGMENTS.build(recipe.train.augment), Spec.parse(recipe.data)
    options = {key: value for key, value in data.options.items() if augment.mix != "none" or key not in CHOOSING}
    return [asdict(augment), recipe.train.variant_seed, str(Spec(data.name, data.argument, options))]


def validation_logits(teacher: Model, split: Split, folder: Path) -> Tensor:
    """A teacher's logits on the validation split, computed once and kept in a folder.

    Args:
        folder: where the file lies, beside the teacher's weights; all runs with this teacher find it.
    """
    path = folder / f"validation-{key_of(fingerprint_of(teacher), split.origin, split.index.tolist())[:16]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            return torch.from_numpy(stored["logits"])
    logits = predict(teacher, evaluation_batches(split, teacher.device))
    write_arrays(path, {"logits": logits.numpy(), "index": split.index})
    return logits
