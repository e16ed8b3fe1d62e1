"""The trials that workers share: lost ones are taken again, none is one too many, and the database may be silent for a while."""

import datetime
import shutil
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from distilens.foundation.errors import UserError
from distilens.studies import search_database
from distilens.studies.search_database import (
    HEIR_OF,
    KILLED,
    KILLS,
    SURPLUS,
    SharedTrials,
    Unreachable,
    is_surplus,
    reason_of,
    retried,
    should_stop,
)

optuna = pytest.importorskip("optuna")
GONE = OperationalError("SELECT", None, Exception("gone"))
GONE.__cause__ = Exception("gone")


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """The database of a search without trials: making its tables takes long."""
    folder = tmp_path_factory.mktemp("empty")
    worker(folder)
    return folder / "search.db"


@pytest.fixture
def shared(empty, tmp_path):
    """The trials of a search, as a worker sees them."""
    shutil.copy(empty, tmp_path)
    return worker(tmp_path)


def worker(folder) -> SharedTrials:
    return SharedTrials(f"sqlite:///{folder / 'search.db'}", "search", ["maximize"], "random")


def take(shared, enough=3):
    """A trial whose settings are chosen."""
    trial = shared.take(shared.look(), enough)
    if trial is not None:
        trial.suggest_float("x", 0, 1)
    return trial


def kill(shared):
    """Let all workers be silent for an hour."""
    old = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - datetime.timedelta(hours=1)
    with shared.storage.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = :old"), {"old": old})


def states(shared) -> list[str]:
    return [trial.state.name for trial in shared.study.get_trials()]


def test_the_trial_of_a_killed_worker_is_taken_again(shared):
    lost = take(shared)
    kill(shared)
    assert [trial.number for trial in shared.look().waiting] == [1]
    heir = take(shared)
    assert heir.params == lost.params
    assert heir.user_attrs == {HEIR_OF: 0, KILLED: 1}
    shared.finish(heir, [0.5])
    shared.finish(lost, [0.7])  # it was not killed after all: too late
    assert states(shared) == ["FAIL", "COMPLETE"]
    assert [trial.number for trial in shared.look().done] == [1]


def test_a_worker_that_is_killed_before_its_first_sign_of_life_is_missed(shared):
    shared.study.ask()
    assert len(shared.look().running) == 1
    kill(shared)
    assert len(shared.look().waiting) == 1


def test_a_setting_that_kills_its_workers_is_given_up(shared):
    for _ in range(KILLS):
        assert take(shared, 1) is not None
        kill(shared)
    assert len(shared.look().done) == 1
    assert take(shared, 1) is None


def test_signs_of_life_keep_a_trial(shared, monkeypatch):
    trial = take(shared)
    kill(shared)
    with shared.beating(trial):
        until(lambda: shared.storage._get_stale_trial_ids(1) == [])
        assert len(shared.look().running) == 1
    kill(shared)
    monkeypatch.setattr(shared.storage, "record_heartbeat", lambda _: (_ for _ in ()).throw(GONE))
    with shared.beating(trial):  # the database takes none
        pass
    assert len(shared.look().waiting) == 1


def until(found):
    start = time.monotonic()
    while not found():
        assert time.monotonic() - start < 10
        time.sleep(0.01)


def test_a_trial_that_is_given_back_waits_at_once(shared):
    for _ in range(KILLS + 1):  # its worker was not killed
        shared.give_back(take(shared, 1))
    standing = shared.look()
    assert (len(standing.done), len(standing.waiting)) == (0, 1)
    assert len({str(trial.params) for trial in shared.study.get_trials()}) == 1


def test_no_trial_is_one_too_many(shared, tmp_path):
    """Two workers see at the same moment that one trial is due."""
    other = worker(tmp_path)
    take(shared, 2)
    standing = other.look()
    assert take(shared, 2).number == 1
    assert other.take(standing, 2) is None
    assert states(shared) == ["RUNNING", "RUNNING", "FAIL"]
    assert SURPLUS in shared.study.get_trials()[2].user_attrs
    standing = shared.look()
    assert (len(standing.done), len(standing.running), standing.waiting) == (0, 2, [])


def test_the_heir_of_a_lost_trial_goes_first(shared, tmp_path):
    """A worker that saw the lost trial not yet failed, or no longer, drops its new trial."""
    other = worker(tmp_path)
    take(shared, 2)
    lost = take(shared, 2)
    shared.study.tell(lost, state=optuna.trial.TrialState.FAIL)  # and the worker that found it is killed here
    new = other.study.ask()
    assert not is_surplus(new, other.look(), 3)
    assert is_surplus(new, other.look(), 2)
    other.finish(new, note=SURPLUS)
    assert take(other, 2).params == lost.params
    assert take(other, 2) is None


def test_two_heirs_of_one_trial_are_told_apart(shared, tmp_path):
    other = worker(tmp_path)
    lost = take(shared)
    shared.study.tell(lost, state=optuna.trial.TrialState.FAIL)
    trials = other.study.get_trials(deepcopy=False)
    assert search_database.add_heirs(shared.study, trials) == search_database.add_heirs(other.study, trials) == 1
    assert take(shared).number == 1
    assert other.take(other.look(), 3) is None
    assert states(shared) == ["FAIL", "RUNNING", "FAIL"]
    assert shared.look().waiting == []


@pytest.mark.parametrize(
    "address", ["sqlite:////nowhere/at/all/x.db", "nope://user:secret@host/x", "what", "oracle://u:secret@h/x"]
)
def test_a_database_that_cannot_be_reached(monkeypatch, address):
    pauses, said = [], []
    monkeypatch.setattr(search_database.time, "sleep", pauses.append)
    with pytest.raises(UserError, match="the database of the search cannot be reached: ") as error:
        SharedTrials(address, "search", ["maximize"], "random", say=said.append)
    assert "secret" not in str(error.value)
    waits = [0.5 * 2**attempt for attempt in range(search_database.RETRIES - 1)]
    assert (pauses, len(said)) == ((waits, 1) if "sqlite" in address else ([], 0))


def test_a_database_of_another_optuna_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("The runtime optuna version 5 is no longer compatible with the table schema.\nPlease")

    monkeypatch.setattr(optuna.storages, "RDBStorage", refuse)
    with pytest.raises(Unreachable, match="cannot be reached: The runtime optuna version 5 is no longer compatible"):
        worker(tmp_path)


def test_a_database_that_comes_back_loses_nothing(monkeypatch):
    monkeypatch.setattr(search_database.time, "sleep", lambda _: None)
    answers, said = [GONE, GONE, 7], []

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retried(call, "lost", said.append) == 7
    assert said == ["lost: gone. Trying again"]
    with pytest.raises(ZeroDivisionError):
        retried(lambda: 1 / 0, "lost")


def test_a_database_that_stays_away(monkeypatch):
    monkeypatch.setattr(search_database.time, "sleep", lambda _: None)
    wrapped = optuna.exceptions.StorageInternalError("x")
    wrapped.__cause__ = GONE
    with pytest.raises(Unreachable, match=r"^lost: .*gone.* the same command goes on with the search$"):
        retried(lambda: (_ for _ in ()).throw(wrapped), "lost")


def test_the_reason_is_the_drivers():
    wrapped = optuna.exceptions.StorageInternalError("An exception is raised during the commit.")
    wrapped.__cause__ = OperationalError("SELECT secret", None, Exception("x"))
    wrapped.__cause__.__cause__ = Exception("connection refused\nIs the server running?")
    assert reason_of(wrapped) == "connection refused"


def test_a_training_goes_on_without_the_database(shared, monkeypatch):
    trial = take(shared)
    assert should_stop(trial, 0.5, 1) is False
    with monkeypatch.context() as patch:
        patch.setattr(trial, "report", lambda *_: (_ for _ in ()).throw(GONE))
        assert should_stop(trial, 0.5, 2) is False
        patch.setattr(trial, "report", lambda *_: None)
        patch.setattr(trial, "should_prune", lambda: True)
        assert should_stop(trial, 0.5, 3) is True
    shared.study.tell(trial, state=optuna.trial.TrialState.FAIL)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):  # another worker has it
        should_stop(trial, 0.5, 4)
