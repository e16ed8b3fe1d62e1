"""A task as plain data, for the files of saved models and of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from distilens.foundation.errors import UserError
from distilens.foundation.own_code import import_object
from distilens.tasks.classification import Classification
from distilens.tasks.segmentation import Segmentation
from distilens.tasks.task import Task

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}


def plain_task(task: Task) -> dict[str, Any]:
    """A task as plain data: `task` names its class, the other keys are its fields.

    Raises:
        UserError: the class cannot be imported by name, or is not a dataclass.
    """
    kind = type(task)
    name = next((name for name, known in TASKS.items() if known is kind), f"{kind.__module__}:{kind.__qualname__}")
    if not dataclasses.is_dataclass(task) or "<locals>" in name:
        raise UserError(
            f"the task {kind.__qualname__} cannot be saved: make it a frozen dataclass at the top of a module, so that it can be "
            "read again"
        )
    return {"task": name, **dataclasses.asdict(task)}


def task_from(about: Mapping[str, Any]) -> Task:
    """The inverse of `plain_task`.

    Raises:
        UserError: there is no such task.
    """
    name, fields = about["task"], {key: value for key, value in about.items() if key != "task"}
    kind = TASKS.get(name) or own_task(name)
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    except TypeError as error:
        raise UserError(f"the task {name} was saved with other fields than it has now: {error}") from None


def own_task(name: str) -> type[Task]:
    """A task of the user's own, by `module:Class`.

    Raises:
        UserError: there is no such class.
    """
    kind = import_object(name, "task")
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise UserError(f"{name} is not a subclass of distilens.tasks.Task")
    return kind
