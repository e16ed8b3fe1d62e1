"""Trackers: show a training in TensorBoard, Weights & Biases or MLflow, through accelerate's trackers.

By default no data leave the machine: rows are written to the run folder, unless the service's own environment variables name
another place (`WANDB_MODE` or `WANDB_API_KEY`, `MLFLOW_TRACKING_URI`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json, write_json
from distilens.training.history import numbers_of

NEEDED = {"tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""The modules of each service."""
PROJECT = "distilens"
"""The default name of the Weights & Biases project and of the MLflow experiment."""


class Trackers:
    """The services that show a run's trainings. In each service, one run shows all stages.

    The first training starts them. `trackers.json` in the folder stores the ids of the services' runs, so that a resumed run
    continues them. If a stage is trained anew, new ones begin.

    Args:
        names: the names of the services.
        folder: the run folder.
        name: the name of the run in the services.
        settings: the run's settings, as plain data.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        folder: Path | None = None,
        *,
        name: str = "run",
        settings: Mapping | None = None,
    ):
        if names and folder is None:
            raise UserError(f"tracker={', '.join(names)} writes into a folder: give one (folder=)")
        self.names, self.folder, self.name = tuple(dict.fromkeys(names)), folder or Path(), name
        self.settings = settings or {}
        self.open: dict[str, Any] = {}  # accelerate's trackers, by service

    def begin(self, stage: str, *, resumed: bool) -> None:
        """Start the services for a stage of the run, unless they are started already.

        Raises:
            UserError: a service is not installed, or cannot be started.
        """
        if not self.names:
            return
        check_installed(self.names)
        path = self.folder / "trackers.json"
        state = read_json(path) or {}
        is_new = not state or (not resumed and stage in state["stages"])
        if is_new:
            self.close()
            state = {"id": uuid.uuid4().hex[:8], "stages": [], "runs": {}}
        state["stages"] = [*dict.fromkeys([*state["stages"], stage])]
        for name in self.names:
            if name not in self.open:
                self.start(name, state)
        write_json(path, state)
        if "wandb" in self.open:
            self.open["wandb"].tracker.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def start(self, name: str, state: dict[str, Any]) -> None:
        """Start one service. A new run there gets the run's settings."""
        PartialState()  # accelerate's trackers need it
        known = state["runs"].get(name)
        try:
            tracker: Any = STARTED[name](self.folder, self.name, state["id"], known)
            if known is None:
                store(tracker, flattened(self.settings))
        except Exception as error:  # the libraries raise many kinds of errors
            raise UserError(f"tracker={name} cannot be started: {error}") from error
        self.open[name] = tracker
        state["runs"][name] = tracker.tracker.info.run_id if name == "mlflow" else state["id"]

    def log(self, stage: str, row: Mapping[str, Any]) -> None:
        """Send a row of the log. A service that fails gets no more rows: it never stops a training."""
        numbers = {f"{stage}/{name}": value for name, value in numbers_of(row).items()}
        for name, tracker in list(self.open.items()):
            try:
                if name == "wandb":  # its own step counter only grows, over all stages
                    tracker.log({**numbers, f"{stage}/step": row["step"]})
                else:
                    tracker.log(numbers, step=row["step"])
            except Exception as error:
                warnings.warn(f"{name} failed and gets no more rows: {error}", stacklevel=2)
                del self.open[name]

    def close(self) -> None:
        """Close the services; the next training starts them again."""
        for tracker in self.open.values():
            tracker.finish()
        self.open = {}


def check_installed(names: Sequence[str]) -> None:
    """Raise a `UserError` for services that are not installed."""
    missing = [name for name in names if not all(importlib.util.find_spec(module) for module in NEEDED[name])]
    if missing:
        raise UserError(
            f"tracker={', '.join(missing)} is not installed: pip install 'distilens[{','.join(missing)}]', or leave it out of "
            "train.tracker"
        )


def start_tensorboard(folder: Path, name: str, identity: str, known: str | None) -> GeneralTracker:
    return started(TensorBoardTracker(identity, folder / "tensorboard"))


def start_wandb(folder: Path, name: str, identity: str, known: str | None) -> GeneralTracker:
    options: dict[str, Any] = {"settings": {"silent": True, "console": "off"}, "resume": "allow"}
    if not {"WANDB_MODE", "WANDB_API_KEY"} & os.environ.keys():
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        options["mode"] = "offline"
    if options.get("mode") == "offline" or os.environ.get("WANDB_MODE") == "offline":
        del options["resume"]  # rows of one id are joined at upload
    if "WANDB_DIR" not in os.environ:
        options["dir"] = str(folder)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return started(WandBTracker(project, name=name, id=os.environ.get("WANDB_RUN_ID", identity), **options))


def start_mlflow(folder: Path, name: str, identity: str, known: str | None) -> GeneralTracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    elsewhere = "MLFLOW_TRACKING_URI" in os.environ
    if not elsewhere:
        mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    artifacts = None if elsewhere else (folder / "mlflow").resolve().as_uri()
    return started(MLflowTracker(PROJECT, artifacts, run_id=known, run_name=name))


def started(tracker: GeneralTracker) -> GeneralTracker:
    tracker.start()
    return tracker


STARTED: dict[str, Callable[[Path, str, str, str | None], GeneralTracker]] = {
    "tensorboard": start_tensorboard,
    "wandb": start_wandb,
    "mlflow": start_mlflow,
}


def store(tracker: GeneralTracker, settings: Mapping[str, Any]) -> None:
    """Show the run's settings. For TensorBoard as text, because accelerate would make a separate run of them."""
    if isinstance(tracker, TensorBoardTracker):
        tracker.log({"settings": "\n".join(f"    {name} = {value}" for name, value in settings.items())}, step=0)
    else:
        tracker.store_init_configuration(dict(settings))


def flattened(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"train.epochs": 3}`; lists as text."""
    if isinstance(content, Mapping):
        parts = [flattened(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in content.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: content if isinstance(content, bool | int | float | str) else json.dumps(content, default=str)}
