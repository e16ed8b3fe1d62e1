"""Tasks: what a target is, which answer is right, and what an explanation differentiates.

A task belongs to a data set and to every model that answers it. `Classification` is the one in use; a subclass of `Task` is
another.
"""

from distilens.foundation.metric import Metric
from distilens.tasks.classification import Classification
from distilens.tasks.saving import task_from
from distilens.tasks.task import Task, as_task

__all__ = ["Classification", "Metric", "Task", "as_task", "task_from"]
