"""Provenance of a run, for `about.json`: versions, machine, git commit, seeds, fingerprints."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from distilens.models.saved import fingerprint_of_file

if TYPE_CHECKING:
    from distilens.runs.run import Run

PACKAGES = ("distilens", "torch", "torchvision", "timm", "accelerate", "numpy", "scikit-learn")


@cache
def origin() -> dict[str, Any]:
    """Versions, machine and git commit of this process."""
    return {
        "versions": {name: version for name in PACKAGES if (version := installed_version(name))},
        "python": platform.python_version(),
        "machine": machine(),
        "git": git_commit(),
    }


def about_run(run: Run) -> dict[str, Any]:
    """Plain data about a run. Versions, machine and commit are those of the student's training.

    If other stages had other versions, machines or commits, `origins` lists all of them with their stages.
    """
    done = run.origins
    latest = done.get("student") or next(iter(done.values()), None) or origin()
    different: list[dict[str, Any]] = []
    for stage, where in done.items():
        same = next((seen for seen in different if {**seen, "stages": None} == {**where, "stages": None}), None)
        if same is None:
            different.append(same := {"stages": [], **where})
        same["stages"].append(stage)
    teachers = run.recipe.teacher.models if run.recipe.teacher else ()
    roles = (*teachers, "base", "student")
    return {
        "name": run.recipe.name,
        **{key: latest.get(key) for key in ("versions", "python", "machine", "git")},
        "seeds": {"data and weights": run.recipe.seed, "variants": run.recipe.train.variant_seed},
        "fingerprints": {
            "data": run.data.fingerprint,
            "teacher data": run.teacher_data.fingerprint,
            **{f"{role} weights": key for role in roles if (key := fingerprint(run, role))},
        },
        "seconds": run.seconds,
        **({"origins": different} if len(different) > 1 else {}),
    }


def fingerprint(run: Run, role: str) -> str | None:
    """The fingerprint of a trained model of the run, as every page shows it; None if the model does not exist."""
    path = run.folder / role / "model.safetensors"
    return fingerprint_of_file(path) if path.is_file() else None


def origins_in(about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The origin of each stage, from what `about_run` wrote. Without `origins`, all stages have the same origin."""
    origins = {
        stage: {key: value for key, value in entry.items() if key != "stages"}
        for entry in about.get("origins", ())
        for stage in entry["stages"]
    }
    if not origins and "versions" in about:
        origins = {
            stage: {key: about.get(key) for key in ("versions", "python", "machine", "git")}
            for stage in about.get("seconds", {})
        }
    return origins


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, processes and accelerators, without the host's name."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": able.get("cpu_name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": PartialState().num_processes,
        "accelerators": gpus or "none",
    }


def git_commit() -> str | None:
    """The git commit of the working directory, marked if there are uncommitted changes; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit.returncode:
            return None
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + (" with changes" if changed else "")
