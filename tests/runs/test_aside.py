"""Progress under other settings is kept, and taken up again."""

import io

from rich.console import Console

from distilens.runs.recipe_file import read_recipe
from distilens.runs.run import Run, lock_run
from distilens.runs.training import train_teacher
from distilens.training.checkpoints import Interrupted
from distilens.training.log import Log

RECIPE = """
name = "stopped"
data = "shapes:train=64,test=40,size=16"
[teacher]
model = "resnet8"
[student]
model = "resnet8"
[train]
epochs = 6
batch_size = 32
log_every = 1
"""


def test_a_stopped_training_survives_a_run_with_other_settings(cache, monkeypatch):
    (cache.parent.parent / "recipe.toml").write_text(RECIPE)

    def go(stop_after=None, **changes):
        recipe = read_recipe("recipe.toml", [f"{key}={value}" for key, value in changes.items()])
        out = io.StringIO()
        run = Run(cache.parent / "stopped", recipe, Console(file=out, width=300))
        epoch = Log.epoch

        def stopping(self, number, *rest):
            epoch(self, number, *rest)
            if stop_after is not None and number + 1 == stop_after:
                raise Interrupted(2, None)

        monkeypatch.setattr(Log, "epoch", stopping)
        try:
            with lock_run(run):
                train_teacher(run)
        except Interrupted:
            pass
        finally:
            monkeypatch.setattr(Log, "epoch", epoch)
        return run, out.getvalue()

    run, _ = go(stop_after=4)
    before = [row for row in run.metrics.rows() if row["stage"] == "teacher"]
    assert sum("validation" in row for row in before) == 4
    _, said = go(stop_after=1, **{"teacher.train.epochs": 5})
    assert "teacher: moved the checkpoints of other settings to" in said
    run, said = go()
    assert "teacher: resumes from the checkpoints of these settings" in said
    assert "teacher epoch 1/6" not in said, "the epochs that were done are not done again"
    assert "teacher epoch 6/6" in said
    rows = [row for row in run.metrics.rows() if row["stage"] == "teacher"]
    assert sum("validation" in row for row in rows) == 6
    assert rows[:6] == before[:6], "three epochs were saved when the fourth was stopped"
