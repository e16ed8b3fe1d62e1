"""Tasks: what a target is, which answer is right, and what an explanation differentiates.

A task belongs to a data set and to every model that answers it: `Classification`, `Segmentation`, or a subclass of `Task`.
"""

from distilens.foundation.metric import Metric
from distilens.tasks.classification import Classification
from distilens.tasks.saving import task_from
from distilens.tasks.segmentation import NOWHERE, VOID, Segmentation
from distilens.tasks.task import Task, as_task, with_classes

__all__ = [
    "NOWHERE",
    "VOID",
    "Classification",
    "Metric",
    "Segmentation",
    "Task",
    "as_task",
    "task_from",
    "with_classes",
]
