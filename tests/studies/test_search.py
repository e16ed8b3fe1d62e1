"""A search: its trials are shared, resumed, pruned and never too many; what cannot be trained ends it; its result."""

import datetime
import json
import threading
import warnings

import pytest

from distilens.foundation.errors import UserError
from distilens.studies import search as searching
from distilens.studies.search import (
    TUNING,
    Search,
    Watch,
    chosen_row,
    describe_search,
    open_search,
    run_search,
    tried,
    with_chosen,
)
from distilens.studies.study import Row, Study, continue_study
from distilens.studies.trial import run_of
from distilens.training.trackers import Trackers

optuna = pytest.importorskip("optuna")
SPACE = ("kd.temperature=1..8", "train.epochs=1..2:int")


def plan(folder, content, trials=4, space=SPACE, **options) -> tuple[Study, Search]:
    search = Search(content, space, trials=trials, sampler="random", **options)
    return Study(folder, "search", (Row("as given", search.content),), (0,)), search


@pytest.fixture(scope="module")
def done(place, content):
    """A search of four trials over a temperature and the epochs, which the teacher must not follow."""
    study, search = plan(place / "done", {key: value for key, value in content.items() if key != "teacher"} | {
        "teacher": {"model": "python:study_nets:teacher", "answers": "stored"}
    })  # fmt: skip
    return study, search, run_search(study, search)


def test_all_trials_are_tried_with_one_teacher(done):
    study, search, found = done
    assert len(tried(found)) == search.trials
    assert all(trial.state.is_finished() for trial in found.get_trials())
    folders = {path.name for path in (study.folder / "runs").iterdir()}
    assert {name for name in folders if name.startswith("teacher")} == {"teacher"}
    for trial in found.get_trials():
        run = run_of(study, Row(f"trial-{trial.number}", search.content), TUNING)
        recipe = run.folder / "recipe.toml"
        assert f"epochs = {trial.params['train.epochs']}" in recipe.read_text()
        assert f"temperature={trial.params['kd.temperature']:.4g}" in recipe.read_text()
        assert not list(run.folder.rglob("*.pt"))


def test_the_same_command_goes_on_and_adds_nothing(done, monkeypatch):
    study, search, found = done
    again = run_search(study, search)
    assert len(again.get_trials()) == len(found.get_trials())
    monkeypatch.setattr(searching, "try_setting", lambda *_: 0.01)
    more = run_search(study, Search(search.content, search.space, trials=6, sampler="random"))
    assert len(tried(more)) == 6


def test_the_chosen_setting_is_a_row(done):
    study, search, found = done
    best = max((trial for trial in found.get_trials() if trial.values), key=lambda trial: trial.value)
    row = chosen_row(search, found)
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
    _, search, found = done
    content = describe_search(search, found)
    json.dumps(content, allow_nan=False)
    assert content["space"] == list(SPACE)
    assert {trial["state"] for trial in content["trials"]} == {"complete"}
    assert content["importance"].keys() <= {"kd.temperature", "train.epochs"}


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
    assert one.study_name != two.study_name
    assert open_search(place / "three" / "same", plan(place, content)[1], address).study_name == one.study_name


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
        self.reported = {}

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
    assert trial.reported == {1: 0.5, 2: 0.4}


def test_a_pruned_training_ends_early_and_leaves_no_checkpoint(place, content, monkeypatch):
    study, search = plan(place / "pruned", {**content, "train": {**content["train"], "epochs": 3}}, 2, SPACE[:1])
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    found = run_search(study, search)
    first, second = found.get_trials()
    assert (first.state.name, second.state.name) == ("COMPLETE", "PRUNED")
    assert len(second.intermediate_values) == 1 < len(first.intermediate_values)
    assert study.result(Row("trial-1", {}), TUNING) is None
    assert not list((study.folder / "runs").rglob("*.pt"))


def test_several_objectives_give_a_front(place, content, monkeypatch):
    scores = {"score": [0.5, 0.6, 0.4, 0.6], "size": [100, 200, 300, 300]}
    at = {"score": -1, "size": -1}

    def value_of(study, row, result, objective):
        at[objective] += 1
        return scores[objective][at[objective]]

    monkeypatch.setattr(searching, "value_of", value_of)
    monkeypatch.setattr(searching, "train_row", lambda *_, **__: {"validation": {"accuracy": 0.5}})
    study, search = plan(place / "front", content, 4, SPACE[:1], objectives=("score", "size"))
    found = run_search(study, search)
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert describe_search(search, found)["front"] == [0, 1]
    assert chosen_row(search, found).name == "chosen, trial 1"


@pytest.mark.slow
def test_real_objectives_are_measured(place, content):
    study, search = plan(place / "measured", content, 1, SPACE[:1], objectives=("score", "latency", "size", "maps"))
    (trial,) = run_search(study, search).get_trials()
    score, milliseconds, size, likeness = trial.values
    assert 0 <= score <= 1
    assert milliseconds > 0
    assert size == 312
    assert -1 <= likeness <= 1


def test_a_setting_that_cannot_be_trained_counts_and_the_search_ends(place, content, monkeypatch):
    """It would be tried for ever if only trained settings counted."""
    study, search = plan(place / "failing", content, 3, SPACE[:1])
    monkeypatch.setattr(searching, "train_row", lambda *_, **__: {"failed": "no such layer"})
    with pytest.raises(UserError, match="no trial of the search was finished: no such layer"):
        run_search(study, search)
    lonely = {key: value for key, value in content.items() if key != "teacher"}
    lonely["student"] = {**content["student"], "methods": ["ce"]}
    study, search = plan(place / "lonely", lonely, 2, ("train.epochs=1..2:int",), objectives=("score", "maps"))
    monkeypatch.setattr(searching, "train_row", lambda *_, **__: {"validation": {}, "metric": {"name": "a"}})
    monkeypatch.setattr(searching, "value_of", lambda *_: (_ for _ in ()).throw(UserError("no [teacher]")))
    with pytest.raises(UserError, match="no trial of the search was finished: no "):
        run_search(study, search)


@pytest.mark.slow
def test_workers_share_a_search(place, content, monkeypatch):
    """Two at once: no trial twice, and not one too many."""
    seen, lock = [], threading.Lock()

    def try_setting(study, search, space, trial):
        value = space[0].suggest(trial)
        with lock:
            seen.append((trial.number, value))
        threading.Event().wait(0.05)
        return value

    monkeypatch.setattr(searching, "try_setting", try_setting)
    monkeypatch.setattr(searching, "train_teachers", lambda *_: None)
    monkeypatch.setattr(searching, "PAUSE", 0.05)
    study, search = plan(place / "shared", content, 8, SPACE[:1])
    open_search(study.folder, search, None)
    errors = []

    def work():
        try:
            run_search(study, search)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert len(seen) == len(set(seen)) == 8
    assert len(tried(open_search(study.folder, search, None))) == 8


def test_the_trial_of_a_killed_worker_is_taken_again(place, content, monkeypatch):
    from sqlalchemy import text

    monkeypatch.setattr(searching, "train_teachers", lambda *_: None)
    monkeypatch.setattr(searching, "try_setting", lambda study, search, space, trial: space[0].suggest(trial))
    monkeypatch.setattr(searching, "PAUSE", 0.05)
    study, search = plan(place / "killed", content, 2, SPACE[:1])
    found = open_search(study.folder, search, None)
    with warnings.catch_warnings(action="ignore"):
        lost = found.ask()
    value = search.dimensions[0].suggest(lost)
    found._storage.record_heartbeat(lost._trial_id)
    old = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - datetime.timedelta(hours=1)
    backend = getattr(found._storage, "_backend", found._storage)
    with backend.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = :old"), {"old": old})
    found = run_search(study, search)
    states = [trial.state.name for trial in found.get_trials()]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]
    assert found.get_trials()[1].params == {"kd.temperature": value}
    assert len(tried(found)) == 2


@pytest.mark.parametrize(
    "address", ["sqlite:////nowhere/at/all/x.db", "nope://user:secret@host/x", "what", "oracle://u:secret@h/x"]
)
def test_a_database_that_cannot_be_reached(place, content, monkeypatch, address, tmp_path):
    pauses = []
    monkeypatch.setattr(searching.time, "sleep", pauses.append)
    with pytest.raises(UserError, match="the database of the search cannot be reached: ") as error:
        open_search(tmp_path, plan(tmp_path, content)[1], address)
    assert "secret" not in str(error.value)
    assert pauses == ([0.5 * 2**attempt for attempt in range(searching.RETRIES - 1)] if "sqlite" in address else [])


def test_a_database_that_comes_back_loses_nothing(monkeypatch):
    from sqlalchemy.exc import OperationalError

    monkeypatch.setattr(searching.time, "sleep", lambda _: None)
    answers = [OperationalError("x", None, Exception("gone")), OperationalError("x", None, Exception("gone")), 7]

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert searching.retried(call, "lost") == 7
    with pytest.raises(ZeroDivisionError):
        searching.retried(lambda: 1 / 0, "lost")


def test_a_watch_is_a_tracker():
    assert isinstance(Watch(Fake(), "accuracy"), Trackers)
