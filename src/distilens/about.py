"""Where a result comes from: versions, machine, git, seeds, fingerprints, for `about.json`."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

if TYPE_CHECKING:
    from distilens.run import Run

PACKAGES = ("distilens", "torch", "torchvision", "timm", "accelerate", "numpy", "scikit-learn")


def about_run(run: Run) -> dict[str, Any]:
    """Plain data about a run as it stands."""
    teachers = run.recipe.teacher.models if run.recipe.teacher else ()
    roles = (*teachers, "base", "student")
    return {
        "name": run.recipe.name,
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
        "python": platform.python_version(),
        "machine": machine(),
        "git": git_commit(),
        "seeds": {"data and weights": run.recipe.seed, "variants": run.recipe.train.variant_seed},
        "fingerprints": {
            "data": run.data.fingerprint,
            "teacher data": run.teacher_data.fingerprint,
            **{f"{role} weights": key for role in roles if (key := run.weights_key(role))},
        },
        "seconds": run.seconds,
    }


def installed(name: str) -> str | None:
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
    """The commit of the working directory, marked when it has changes; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit.returncode:
            return None
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + (" with changes" if changed else "")
