"""A search: its trials are shared, resumed, pruned and never too many; what cannot be trained ends it; its result."""

import io
import json
import threading

import pytest
from rich.console import Console

from distilens.foundation.errors import UserError
from distilens.studies import search as searching
from distilens.studies.search import (
    TUNING,
    Search,
    Watch,
    chosen_row,
    describe_search,
    first_comparison,
    open_search,
    row_of,
    run_search,
    with_chosen,
    write_trials,
)
from distilens.studies.search_database import should_stop
from distilens.studies.study import Row, Study, continue_study
from distilens.studies.trial import run_of
from distilens.training.settings import Training
from distilens.training.trackers import Trackers

optuna = pytest.importorskip("optuna")
SPACE = ("kd.temperature=1..8", "train.epochs=1..2:int")
RATE = ("train.optimizer.lr=0.01..0.1",)


def plan(folder, content, trials=4, space=SPACE, **options) -> tuple[Study, Search]:
    search = Search(content, space, trials=trials, sampler="random", **options)
    return Study(folder, "search", (Row("as given", search.content),), (0,)), search


@pytest.fixture(scope="module")
def lonely(content):
    """A recipe without a teacher, whose trials take no time; its learning rate is searched."""
    alone = {key: value for key, value in content.items() if key != "teacher"}
    return {**alone, "student": {**content["student"], "methods": ["ce"]}}


@pytest.fixture(scope="module")
def done(place, content):
    """A search of four trials over a temperature and the epochs, which the teacher must not follow."""
    study, search = plan(place / "done", {key: value for key, value in content.items() if key != "teacher"} | {
        "teacher": {"model": "python:study_nets:teacher", "answers": "stored"}
    })  # fmt: skip
    return study, search, run_search(study, search)


def test_all_trials_are_tried_with_one_teacher(done):
    study, search, shared = done
    trials = shared.study.get_trials()
    assert len(trials) == len(shared.look().done) == search.trials
    assert all(trial.state.is_finished() for trial in trials)
    folders = {path.name for path in (study.folder / "runs").iterdir()}
    assert {name for name in folders if name.startswith("teacher")} == {"teacher"}
    for trial in trials:
        run = run_of(study, row_of(search, trial.user_attrs["changes"]), TUNING)
        assert run.folder.name == trial.user_attrs["run"]
        recipe = run.folder / "recipe.toml"
        assert f"epochs = {trial.params['train.epochs']}" in recipe.read_text()
        assert f"temperature={trial.params['kd.temperature']:.4g}" in recipe.read_text()
        assert not list(run.folder.rglob("*.pt"))


def test_the_same_command_goes_on_and_adds_nothing(done, monkeypatch):
    study, search, shared = done
    again = run_search(study, search)
    assert len(again.study.get_trials()) == len(shared.study.get_trials())
    monkeypatch.setattr(searching, "train_setting", lambda *_: [0.01])
    more = run_search(study, Search(search.content, search.space, trials=6, sampler="random"))
    assert len(more.look().done) == 6


def test_the_chosen_setting_is_a_row(done):
    study, search, shared = done
    best = max((trial for trial in shared.study.get_trials() if trial.values), key=lambda trial: trial.value)
    row = chosen_row(search, shared)
    assert row.name == f"chosen, trial {best.number}"
    assert row.facts["validation in the search"]["accuracy"] == best.value
    assert row.recipe["student"]["methods"][1] == f"kd:temperature={best.params['kd.temperature']:.4g}"
    assert row.recipe["train"]["epochs"] == best.params["train.epochs"]
    assert row.recipe["teacher"]["train"]["epochs"] == 1
    planned = with_chosen(study, row)
    assert [(question.row, question.against) for question in planned.questions] == [(row.name, "as given")]
    planned.save()
    assert continue_study(planned).rows == planned.rows
    other = Row("chosen, trial 77", row.recipe)  # more trials may find a better one
    assert [each.name for each in continue_study(with_chosen(study, other)).rows] == ["as given", row.name, other.name]


def test_a_search_is_plain_data(done):
    study, search, shared = done
    content = describe_search(search, shared)
    json.dumps(content, allow_nan=False)
    assert content["space"] == list(SPACE)
    assert {trial["state"] for trial in content["trials"]} == {"complete"}
    assert all((study.folder / "runs" / trial["run"]).is_dir() for trial in content["trials"] if trial["run"])
    assert content["importance"].keys() <= {"kd.temperature", "train.epochs"}
    write_trials(study.folder, search, shared)
    assert json.loads((study.folder / "trials.json").read_text()) == content


def test_another_search_in_the_folder_is_refused(done, content):
    study, search, _ = done
    for other in (
        Search({**search.content, "note": "x"}, search.space),
        Search(search.content, SPACE[:1]),
        Search(search.content, SPACE, objectives=("score", "size")),
    ):
        with pytest.raises(UserError, match="holds a search of another recipe or space"):
            open_search(study.folder, other, None)


def test_two_searches_in_one_database_are_apart(place, content, tmp_path):
    address = f"sqlite:///{tmp_path / 'all.db'}"
    one, two = (
        open_search(place / where / "same", plan(place, content, space=space)[1], address)
        for where, space in (("one", SPACE), ("two", ("kd.temperature=1|2",)))
    )
    assert one.study.study_name != two.study.study_name
    three = open_search(place / "three" / "same", plan(place, content)[1], address)
    assert three.study.study_name == one.study.study_name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials and --timeout are above 0"),
        ({"timeout": 0.0}, "--trials and --timeout are above 0"),
        ({"objectives": ("scores",)}, "unknown objective 'scores'. Did you mean 'score'?"),
        ({"objectives": ()}, "name each objective once"),
        ({"objectives": ("score", "score")}, "name each objective once"),
    ],
)
def test_wrong_plans_are_refused(content, options, message):
    with pytest.raises(UserError) as error:
        Search(content, SPACE, **options)
    assert message in str(error.value)


class Fake:
    """A trial of Optuna that is pruned at the second epoch."""

    def __init__(self):
        self.reported: dict[int, float] = {}

    def report(self, value, step):
        self.reported[step] = value

    def should_prune(self):
        return len(self.reported) == 2


def test_a_bad_training_is_stopped():
    trial = Fake()
    watch = Watch(trial, "accuracy")
    watch.log("teacher", {"epoch": 1, "validation": {"accuracy": 0.9}})
    watch.log("student", {"epoch": 1, "loss": 1.0})
    watch.log("student", {"epoch": 1, "validation": {"accuracy": 0.5}})
    with pytest.raises(optuna.TrialPruned):
        watch.log("student", {"epoch": 2, "validation": {"accuracy": 0.4}})
    assert trial.reported == {2: 0.5, 3: 0.4}


@pytest.mark.parametrize(
    ("epochs", "every", "first"), [(100, 20, 20), (100, 1, 10), (3, 1, 1), (40, 5, 5), (200, 7, 21), (5, 10, 10)]
)
def test_the_first_comparison_is_after_a_validated_epoch(epochs, every, first):
    assert first_comparison(Training(epochs=epochs, validate_every=every)) == first


def test_trainings_are_compared_after_equal_epochs(place, content):
    """The pruner's guess compared the last score of a finished training with the first ones of others, and stopped the best."""
    content = {**content, "train": {**content["train"], "epochs": 100, "validate_every": 20}}
    study, search = plan(place / "halving", content, 9, SPACE[:1])
    trials = open_search(study.folder, search, None).study
    curves = [
        (0.5, 0.6, 0.7, 0.75, 0.76),
        (0.4, 0.45, 0.5, 0.55, 0.6),
        (0.6, 0.7, 0.8, 0.85, 0.9),
        (0.55, 0.6, 0.7, 0.7, 0.7),
    ]
    ended = []
    for curve in curves:
        trial = trials.ask()
        for number, value in enumerate(curve):
            if should_stop(trial, value, 20 * (number + 1)):
                break
        ended.append(20 * (number + 1))
        trials.tell(trial, value)
    assert ended == [100, 20, 100, 20]


def test_a_pruned_training_ends_early_and_leaves_no_checkpoint(place, content, monkeypatch):
    study, search = plan(place / "pruned", {**content, "train": {**content["train"], "epochs": 3}}, 2, SPACE[:1])
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    first, second = run_search(study, search).study.get_trials()
    assert (first.state.name, second.state.name) == ("COMPLETE", "PRUNED")
    assert len(second.intermediate_values) == 1 < len(first.intermediate_values)
    assert study.result(row_of(search, second.user_attrs["changes"]), TUNING) is None
    assert not list((study.folder / "runs").rglob("*.pt"))


def test_several_objectives_give_a_front(place, content, monkeypatch):
    scores = {"score": [0.5, 0.6, 0.4, 0.6], "size": [100, 200, 300, 300]}
    at = {"score": -1, "size": -1}

    def value_of(run, result, objective):
        at[objective] += 1
        return scores[objective][at[objective]]

    monkeypatch.setattr(searching, "value_of", value_of)
    monkeypatch.setattr(searching, "train_row", lambda *_, **__: {"validation": {"accuracy": 0.5}})
    study, search = plan(place / "front", content, 4, SPACE[:1], objectives=("score", "size"))
    shared = run_search(study, search)
    assert [direction.name for direction in shared.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert describe_search(search, shared)["front"] == [0, 1]
    assert chosen_row(search, shared).name == "chosen, trial 1"


def test_a_setting_that_cannot_be_trained_counts_and_the_search_ends(place, content, lonely, monkeypatch):
    """It would be tried for ever if only trained settings counted."""
    study, search = plan(place / "failing", content, 3, SPACE[:1])
    monkeypatch.setattr(searching, "train_row", lambda *_, **__: {"failed": "no such layer"})
    console = Console(record=True, file=io.StringIO(), width=200)
    with pytest.raises(UserError, match="no trial of the search was finished: no such layer"):
        run_search(study, search, console=console)
    assert "trial 2 cannot be trained: no such layer" in console.export_text()
    study, search = plan(place / "lonely", lonely, 2, ("train.epochs=1..2:int",), objectives=("score", "maps"))
    monkeypatch.setattr(searching, "train_row", lambda *_, **__: {"validation": {}, "metric": {"name": "a"}})
    monkeypatch.setattr(searching, "value_of", lambda *_: (_ for _ in ()).throw(UserError("no [teacher]")))
    with pytest.raises(UserError, match="no trial of the search was finished: no "):
        run_search(study, search)


@pytest.mark.slow
def test_workers_share_a_search(place, content, monkeypatch):
    """Two at once: no trial twice, and not one too many."""
    seen, lock = [], threading.Lock()

    def train_setting(study, search, space, shared, trial):
        value = space[0].suggest(trial)
        with lock:
            seen.append((trial.number, value))
        threading.Event().wait(0.05)
        return [value]

    monkeypatch.setattr(searching, "train_setting", train_setting)
    monkeypatch.setattr(searching, "train_teachers", lambda *_: None)
    monkeypatch.setattr(searching, "PAUSE", 0.05)
    study, search = plan(place / "shared", content, 8, SPACE[:1])
    open_search(study.folder, search, None)
    assert at_once(lambda: run_search(study, search), lambda: run_search(study, search)) == []
    assert len(seen) == len(set(seen)) == 8
    assert len(open_search(study.folder, search, None).look().done) == 8


def at_once(*calls) -> list[BaseException]:
    """Let threads make the calls; returns their errors."""
    errors = []

    def work(call):
        try:
            call()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(call,)) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return errors


def test_the_same_settings_are_trained_once(place, lonely, monkeypatch):
    """Also by two workers at once: the second waits, and reads the result of the first."""
    trained, real = [], searching.train_row

    def train_row(study, row, seed, **options):
        result = real(study, row, seed, **options)
        trained.append((row.name, result["fingerprint"], result["seconds"]))
        return result

    monkeypatch.setattr(searching, "train_row", train_row)
    monkeypatch.setattr(searching, "PAUSE", 0.05)
    study, search = plan(place / "same", lonely, 3, ("train.optimizer.lr=0.01|0.02",))
    shared = run_search(study, search)
    assert len(trained) == len(shared.look().done) == 3
    assert 1 <= len(set(trained)) <= 2
    row, results = row_of(search, ["train.optimizer.lr=0.03"]), []
    assert at_once(*[lambda: results.append(searching.train_or_wait(study, row, None))] * 2) == []
    assert results[0] == results[1]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), UserError("the disk is full"), OSError(28, "no space")])
def test_a_stopped_worker_gives_its_trial_back(place, lonely, monkeypatch, stop):
    """The next one has its settings at once, and continues its training."""
    if isinstance(stop, UserError):
        stop.__cause__ = OSError(28, "no space")
    changed = {**lonely, "train": {**lonely["train"], "epochs": 3}}
    study, search = plan(place / f"stopped-{type(stop).__name__}", changed, 1, RATE)
    epochs = []

    def stop_early(trial, value, epoch):
        epochs.append(epoch)
        if len(epochs) == 2:
            raise stop
        return False

    monkeypatch.setattr(searching, "should_stop", stop_early)
    with pytest.raises(type(stop)):
        run_search(study, search)
    lost, heir = run_search(study, search).study.get_trials()
    assert (lost.state.name, heir.state.name) == ("FAIL", "COMPLETE")
    assert heir.params == lost.params
    assert heir.user_attrs["run"] == lost.user_attrs["run"]
    assert epochs in ([1, 2, 2, 3], [1, 2, 3])  # not the first epoch again
    assert len(study.result(row_of(search, heir.user_attrs["changes"]), TUNING)["curve"]) == 3
    assert heir.user_attrs["killed"] == 0


def test_a_crash_ends_the_worker_but_not_the_search(place, lonely, monkeypatch):
    """A setting that crashes would crash each worker in turn."""
    real = searching.train_row

    def train_row(study, row, seed, **options):
        monkeypatch.setattr(searching, "train_row", real)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(searching, "train_row", train_row)
    study, search = plan(place / "crashed", lonely, 2, RATE)
    with pytest.raises(ZeroDivisionError):
        run_search(study, search)
    trials = run_search(study, search).study.get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert trials[0].user_attrs["failed"] == "ZeroDivisionError: a bug"


def test_an_objective_that_is_not_a_number_is_a_failure(place, lonely, monkeypatch):
    monkeypatch.setattr(searching, "value_of", lambda *_: float("nan"))
    study, search = plan(place / "nan", lonely, 2, RATE)
    with pytest.raises(UserError, match="no trial of the search was finished: the objective score of this setting is"):
        run_search(study, search)


def test_a_trial_that_another_worker_has_by_now_is_left(place, lonely, monkeypatch):
    """This worker was silent for too long."""
    study, search = plan(place / "silent", lonely, 1, RATE)
    real = searching.train_setting

    def train_setting(study, search, space, shared, trial):
        monkeypatch.setattr(searching, "train_setting", real)
        values = real(study, search, space, shared, trial)
        shared.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return values

    monkeypatch.setattr(searching, "train_setting", train_setting)
    lost, heir = run_search(study, search).study.get_trials()
    assert (lost.state.name, heir.state.name, heir.params) == ("FAIL", "COMPLETE", lost.params)


def test_a_late_worker_waits_for_the_others(place, lonely, monkeypatch):
    """After the timeout it begins no trial, but chooses only when nobody trains any more."""
    study, search = plan(place / "late", lonely, 4, RATE, timeout=0.01)
    shared = open_search(study.folder, search, None)
    other = shared.take(shared.look(), 4)
    search.dimensions[0].suggest(other)
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            shared.finish(other, [0.5])

    monkeypatch.setattr(searching, "train_teachers", lambda *_: sum(range(10**6)))
    monkeypatch.setattr(searching.time, "sleep", sleep)
    assert len(run_search(study, search).look().done) == 1
    assert pauses == [searching.PAUSE] * 3


def test_a_watch_is_a_tracker():
    assert isinstance(Watch(Fake(), "accuracy"), Trackers)
