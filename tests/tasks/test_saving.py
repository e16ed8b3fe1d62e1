"""A task goes into a file and comes back; what cannot be read again is refused."""

from dataclasses import dataclass

import pytest

from brightness import Brightness
from distilens.foundation.errors import UserError
from distilens.tasks import Classification, Task, task_from
from distilens.tasks.saving import plain_task


@pytest.mark.parametrize("task", [Classification(("a", "b")), Brightness(), Brightness(outputs=3)])
def test_there_and_back(task):
    assert task_from(plain_task(task)) == task


def test_tasks_that_cannot_be_read_again():
    @dataclass(frozen=True)
    class Local(Task):
        outputs: int = 1

    with pytest.raises(UserError, match="Local cannot be saved: make it a frozen dataclass at the top of a module"):
        plain_task(Local())


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"task": "no_such_module:Lux"}, "no_such_module"),
        ({"task": "brightness:Lux"}, "brightness has no 'Lux'"),
        ({"task": "segments"}, "needs package.module:callable"),
        ({"task": "brightness:pictures"}, "is not a subclass of"),
        ({"task": "brightness:Brightness", "unit": "lux"}, "was saved with other fields than it has now"),
    ],
)
def test_files_at_fault(about, words):
    with pytest.raises(UserError, match=words):
        task_from(about)
