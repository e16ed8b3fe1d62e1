"""The trials of a search in a database that all of its workers share. Optuna proposes their settings and stores them.

This file adds what several workers need: signs of life, another worker for a trial whose worker is gone, no trial too many, and
patience with a database that does not answer.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from distilens.foundation.errors import UserError

HEARTBEAT = 30
"""Seconds between two signs of life of a worker. A trial whose worker is silent four times as long is given to another one."""
RETRIES = 8
"""How often a query is tried again if the database does not answer; the pauses double from half a second."""
KILLS = 4
"""A setting that so many workers were killed with counts as impossible to train: it may need too much memory."""
UNREACHED = "the database of the search cannot be reached"
LOST = "the database of the search went away"
FAILED, SURPLUS, GIVEN_BACK = "failed", "surplus", "given back"
"""Notes on a trial without values: its setting cannot be trained, it was one too many, or its worker was stopped."""
HEIR_OF, KILLED = "heir of", "killed"
"""Notes on a trial that repeats a lost one: the number of the lost trial, and how many workers were killed with its settings."""
Sampler = Literal["tpe", "cmaes", "random"]


class Unreachable(UserError):  # noqa: N818  # the database is
    """The database does not answer."""


def import_optuna() -> Any:
    """Optuna, without its log and its warnings about heartbeats.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("a search needs Optuna: pip install 'distilens[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "Heartbeat of storage is supposed to be used with")  # `beating` gives them
    return optuna


def make_sampler(name: Sampler) -> Any:
    """The sampler with a name; each worker draws its own numbers."""
    samplers = import_optuna().samplers
    if name == "cmaes":
        return samplers.CmaEsSampler(warn_independent_sampling=False)
    return {"tpe": samplers.TPESampler, "random": samplers.RandomSampler}[name]()


@dataclass(frozen=True)
class Standing:
    """The trials of a search at one moment.

    Attributes:
        done: finished, stopped early, or impossible to train.
        running: being trained by some worker.
        waiting: they repeat the settings of lost trials; the next workers take them.
    """

    done: list[Any]
    running: list[Any]
    waiting: list[Any]


class SharedTrials:
    """The trials of a search.

    Args:
        address: the address of the database, as SQLAlchemy has it.
        name: the name of the search: a database may hold several.
        directions: `maximize` or `minimize`, for each objective.
        sampler: how settings are proposed.
        first: the number of epochs before the first comparison. There, and after 3 × `first`, 9 × `first`, ... epochs, the best
            of each three trainings goes on.
        say: receives a line when the database does not answer.

    Raises:
        Unreachable: the database cannot be reached.
    """

    def __init__(
        self,
        address: str,
        name: str,
        directions: Sequence[str],
        sampler: Sampler,
        *,
        first: int = 1,
        say: Callable[[str], object] = lambda line: None,
    ):
        self.say, self.seen = say, set[int]()

        def connect() -> tuple[Any, Any]:
            optuna = import_optuna()
            # the first epoch is given: a guessed one would compare scores of different epochs if not every epoch is validated
            halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
            storage = optuna.storages.RDBStorage(
                address,
                engine_kwargs={"pool_pre_ping": True},  # connections from before a restart are made anew
                heartbeat_interval=HEARTBEAT,
                grace_period=4 * HEARTBEAT,
            )
            return storage, optuna.create_study(
                study_name=name,
                storage=storage,
                directions=list(directions),
                sampler=make_sampler(sampler),
                pruner=halving if len(directions) == 1 else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )

        try:
            self.storage, self.study = self.query(connect, UNREACHED)
        except RuntimeError as error:  # another version of Optuna made the tables
            raise Unreachable(f"{UNREACHED}: {first_line(error)}") from None

    def query(self, call: Callable[[], Any], problem: str = LOST) -> Any:
        """The result of a call to the database, tried again while it does not answer.

        Raises:
            Unreachable: it does not answer.
        """
        return retried(call, problem, self.say)

    def look(self) -> Standing:
        """All trials as they are now. The settings of lost trials wait for another worker from now on."""

        def read() -> Standing:
            optuna = import_optuna()
            optuna.storages.fail_stale_trials(self.study)
            trials, states = self.study.get_trials(deepcopy=False), optuna.trial.TrialState
            if add_heirs(self.study, trials):
                trials = self.study.get_trials(deepcopy=False)
            running = [trial for trial in trials if trial.state == states.RUNNING]
            for trial in running:
                self.vouch(trial)
            waiting = [trial for trial in trials if trial.state == states.WAITING]
            return Standing([trial for trial in trials if is_done(trial)], running, waiting)

        return self.query(read)

    def vouch(self, trial: Any) -> None:
        """A sign of life for a running trial at first sight: a worker that is killed before its own first one is missed, too."""
        if trial.number not in self.seen:
            self.beat(trial)
            self.seen.add(trial.number)

    def beat(self, trial: Any) -> None:
        """A sign of life for a trial."""
        search = self.storage.get_study_id_from_name(self.study.study_name)
        self.storage.record_heartbeat(self.storage.get_trial_id_from_study_id_trial_number(search, trial.number))

    def take(self, standing: Standing, enough: int) -> Any:
        """A trial to train, with the settings of a lost one if there is any; None if enough trials are begun.

        Args:
            standing: what `look` saw last.
            enough: how many trials the search has.
        """
        if len(standing.done) + len(standing.running) >= enough:
            return None
        trial = self.query(self.study.ask)
        self.seen.add(trial.number)
        self.query(lambda: self.beat(trial))
        if is_surplus(trial, self.look(), enough):  # another worker took the last one at the same moment
            self.finish(trial, note=SURPLUS)
            return None
        return trial

    @contextmanager
    def beating(self, trial: Any) -> Iterator[None]:
        """Give signs of life for a trial meanwhile. Those that the database does not take are left out."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.is_set():
                with suppress(Exception):
                    self.beat(trial)
                ended.wait(HEARTBEAT)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(HEARTBEAT)

    def finish(
        self,
        trial: Any,
        values: Sequence[float] | None = None,
        *,
        note: str = "",
        reason: Any = True,
        pruned: bool = False,
    ) -> None:
        """Store how a trial ended, unless another worker has it by now.

        Args:
            values: of the objectives, for a finished trial.
            note: of a trial without values: `FAILED`, `SURPLUS` or `GIVEN_BACK`.
            reason: the content of the note.
            pruned: the training was stopped early.
        """
        optuna = import_optuna()
        states = optuna.trial.TrialState
        state = states.PRUNED if pruned else states.COMPLETE if values is not None else states.FAIL
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            if note:
                self.query(lambda: trial.set_user_attr(note, reason))
            self.query(lambda: self.study.tell(trial, values, state, skip_if_finished=True))

    def give_back(self, trial: Any) -> None:
        """Let another worker take a trial at once, if the database answers; otherwise the silence of this worker tells it."""
        with suppress(Exception):
            trial.set_user_attr(GIVEN_BACK, True)
            self.study.tell(trial, state=import_optuna().trial.TrialState.FAIL, skip_if_finished=True)


def is_done(trial: Any) -> bool:
    """Whether a trial is finished, stopped early, or impossible to train."""
    states = import_optuna().trial.TrialState
    if trial.state in (states.COMPLETE, states.PRUNED):
        return True
    return trial.state == states.FAIL and (FAILED in trial.user_attrs or kills_of(trial) >= KILLS)


def is_lost(trial: Any) -> bool:
    """Whether a trial's worker was killed or stopped, so that its settings are still to be trained."""
    failed = trial.state == import_optuna().trial.TrialState.FAIL
    return failed and SURPLUS not in trial.user_attrs and not is_done(trial)


def kills_of(trial: Any) -> int:
    """How many workers were killed with the settings of a trial without a result."""
    ended_by_hand = {FAILED, SURPLUS, GIVEN_BACK} & trial.user_attrs.keys()
    return trial.user_attrs.get(KILLED, 0) + (not ended_by_hand)


def add_heirs(study: Any, trials: Sequence[Any]) -> int:
    """Let the settings of each lost trial wait for another worker; returns how many were added.

    Two workers may add the same one at once: `is_surplus` is true for the second.
    """
    optuna = import_optuna()
    inherited = {trial.user_attrs.get(HEIR_OF) for trial in trials}
    lost = [trial for trial in trials if is_lost(trial) and trial.number not in inherited]
    for trial in lost:
        heir = optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs=trial.system_attrs,  # what samplers and pruners noted
            user_attrs={HEIR_OF: trial.number, KILLED: kills_of(trial)},
        )
        study.add_trial(heir)
    return len(lost)


def is_surplus(trial: Any, standing: Standing, enough: int) -> bool:
    """Whether a trial that was just taken is one too many: heirs of lost trials go first, then the lower number."""
    heir_of = trial.user_attrs.get(HEIR_OF)
    others = [each for each in (*standing.done, *standing.running, *standing.waiting) if each.number != trial.number]
    if heir_of is not None:
        return any(each.user_attrs.get(HEIR_OF) == heir_of and each.number < trial.number for each in others)
    return len([each for each in others if HEIR_OF in each.user_attrs or each.number < trial.number]) >= enough


def should_stop(trial: Any, value: float, epoch: int) -> bool:
    """Report a validation after a number of epochs, and ask whether the training is worse than others were then.

    A training goes on if the database does not answer.
    """
    try:
        trial.report(value, epoch)
        return trial.should_prune()
    except Exception as error:
        if is_of_database(error):
            return False
        raise


def retried(call: Callable[[], Any], problem: str, say: Callable[[str], object] = lambda line: None) -> Any:
    """The result of a call to the database, tried again while it does not answer.

    Args:
        problem: what is wrong, for the message.
        say: receives a line when it does not answer at first.

    Raises:
        Unreachable: it does not answer.
    """
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    cause = ""
    for attempt in range(RETRIES):
        try:
            return call()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise Unreachable(f"{problem}: {first_line(error)}") from None
        except Exception as error:
            if not is_of_database(error):
                raise
            cause = reason_of(error)
        if attempt == 0:
            say(f"{problem}: {cause}. Trying again")
        if attempt < RETRIES - 1:
            time.sleep(0.5 * 2**attempt)
    raise Unreachable(f"{problem}: {cause}. Finished trials are kept; the same command goes on with the search")


def is_of_database(error: BaseException) -> bool:
    """Whether an error is the database's. Optuna wraps some of them."""
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, SQLAlchemyError) or isinstance(error.__cause__, SQLAlchemyError)


def reason_of(error: BaseException) -> str:
    """What the database's driver says, below the wrappings of Optuna and SQLAlchemy."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
