"""What `bench` measures: networks, each with its saved model and its exported files."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distilens.data import as_data
from distilens.deploy.exporting import FILE, read_exported
from distilens.deploy.predict import BadFile, open_model
from distilens.deploy.to_pt2 import Pt2Runtime
from distilens.foundation.errors import UserError
from distilens.measure.cost import macs, parameters
from distilens.models import MODELS, build_model
from distilens.models.model import Model
from distilens.models.saved import fingerprint_of_file, load_model, save_model

SUFFIXES = {".onnx": ("onnx", "openvino"), ".pte": ("executorch",), ".pt2": ("pt2",)}
"""The runtimes of each kind of file."""
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "executorch": "executorch"}
"""The packages of the runtimes other than PyTorch."""


@dataclass(frozen=True)
class Target:
    """A network to measure.

    Attributes:
        name: its name in the tables.
        model: the folder of the saved model, for PyTorch; None if there are only files.
        files: its exported files.
        parameters, macs: its cost, if the model is there.
    """

    name: str
    model: Path | None = None
    files: tuple[Path, ...] = ()
    parameters: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Candidate:
    """One model in one runtime, as a process of `timing` opens it.

    Attributes:
        name: the target's name.
        runtime: a key of `timing.OPENERS`.
        path: the exported file or the saved model's folder.
        shape: channels, height and width of the input.
        type: the type of the input, `float32` or `uint8`.
        batch: the only number of images per call; None if any number is possible.
        precision: `float32` or `int8`.
        size: the bytes of the file.
        cost: `parameters` and `macs` of the network.
        fingerprint: that of the student's weights.
    """

    name: str
    runtime: str
    path: Path
    shape: tuple[int, int, int]
    type: str = "float32"
    batch: int | None = None
    precision: str = "float32"
    size: int = 0
    cost: Mapping[str, int | None] = field(default_factory=dict)
    fingerprint: str | None = None

    @property
    def key(self) -> str:
        """The key in a job."""
        return f"{self.name} {self.runtime} {self.path}"


def find_targets(
    given: Sequence[Any],
    scratch: Path,
    *,
    data: Any = None,
    classes: int | Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
) -> list[Target]:
    """The targets that a user named.

    Args:
        given: run folders, folders of saved models or of exports, exported files, model notations, `Model`s, or `Target`s.
        scratch: a folder for models that are not saved anywhere.
        data: the data that give a notation its classes and its size.
        classes, size: number or names of the classes, height and width, for a notation without data.

    Raises:
        UserError: there is no such thing, or a notation comes without classes or size.
    """
    loaded = as_data(data) if data is not None else None
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else classes
    context = loaded.task if loaded is not None else names, loaded.size if loaded is not None else size
    found: list[Target] = []
    for each in given:
        target = find_target(each, scratch / str(len(found)), *context)
        twin = next((one for one in found if is_twin(one, target)), None)
        if twin is None:
            found.append(target)
        else:
            found[found.index(twin)] = replace(twin, files=(*twin.files, *target.files))
    if not found:
        raise UserError("name what to measure: a run folder, exported files, or a model")
    return with_distinct_names(found)


def find_target(given: Any, scratch: Path, task: Any, size: tuple[int, int] | None) -> Target:
    """The target that one word or object names."""
    if isinstance(given, Target):
        return given if given.model is None or given.parameters else with_cost(given)
    if isinstance(given, Model):
        save_model(given, scratch)
        return with_cost(Target(given.name, scratch))
    path = Path(str(given))
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
        return Target(path.stem.removesuffix("-int8"), files=(path,))
    if path.is_dir() and str(given) not in MODELS.entries:
        return target_in(path)
    spec = MODELS.resolve(str(given))
    size = size or (None if not spec.options.get("size") else (0, 0))  # the network's own size goes before
    if task is None or size is None:
        raise UserError(
            f"{given} needs {'the number of its classes' if task is None else 'the size of its pictures'}: name the data "
            "(--data), or give --classes N and --input-size HEIGHT WIDTH"
        )
    model = build_model(str(given), task, size)
    save_model(model, scratch)
    return with_cost(Target(str(given), scratch))


def target_in(folder: Path) -> Target:
    """The target of a run folder, a saved model's folder, or an export folder."""
    if (folder / "model.json").is_file():
        return with_cost(Target(folder.name, folder))
    if (folder / "recipe.toml").is_file():
        if not (folder / "student" / "model.json").is_file():
            raise UserError(f"there is no trained student in {folder}: distilens run, or distilens train {folder}")
        return with_cost(Target(folder.name, folder / "student", exported_in(folder / "export")))
    if (folder / FILE).is_file():
        named = folder.resolve()
        return Target(named.parent.name if named.name == "export" else named.name, files=exported_in(folder))
    raise UserError(f"{folder} is not a run, a saved model or an export: it has no recipe.toml, model.json or {FILE}")


def exported_in(folder: Path) -> tuple[Path, ...]:
    """The files of an export that can be run; none if there is no export."""
    found = read_exported(folder)
    return () if found is None else tuple(path for path in found.paths() if path.suffix in SUFFIXES and path.is_file())


def place_for(given: Sequence[str | Path]) -> Path | None:
    """Where `bench.json` goes: beside the exported files, for a run in its `export`; None if that is not one place."""
    places = set()
    for path in map(Path, given):
        if path.suffix in SUFFIXES:
            places.add(path.parent)
        elif (path / "recipe.toml").is_file():
            places.add(path / "export")
        else:
            places.add(path if (path / FILE).is_file() else None)
    place = places.pop() if len(places) == 1 else None
    return place and place / "bench.json"


def is_twin(one: Target, other: Target) -> bool:
    """Whether both are files of one export: the same folder and name, apart from the precision and the format."""
    if one.model or other.model or one.name != other.name:
        return False
    return {path.parent for path in one.files} == {path.parent for path in other.files}


def with_cost(target: Target) -> Target:
    """The target with the parameters and multiply-accumulates of its model."""
    assert target.model is not None
    model = load_model(target.model).cpu()
    return replace(target, parameters=parameters(model), macs=macs(model))


def with_distinct_names(targets: Sequence[Target]) -> list[Target]:
    """The targets; those with one name are named after their folders."""
    names = [target.name for target in targets]
    return [
        target if names.count(target.name) == 1 else replace(target, name=str(target.model or target.files[0]))
        for target in targets
    ]


def candidates_of(target: Target, runtimes: Sequence[str]) -> tuple[list[Candidate], list[str]]:
    """A target in every runtime that can run it, and what is left out with the reason.

    Raises:
        UserError: a file cannot be opened.
    """
    made, skipped = [], []
    cost = {"parameters": target.parameters, "macs": target.macs}
    if target.model is not None:
        model = load_model(target.model)
        shape = (3 if model.mean.shape[1] == 1 else int(model.mean.shape[1]), *model.size)
        weights = target.model / "model.safetensors"
        size, fingerprint = weights.stat().st_size, fingerprint_of_file(weights)
        made += [
            Candidate(target.name, runtime, target.model, shape, size=size, cost=cost, fingerprint=fingerprint)
            for runtime in ("eager", "compiled")
            if runtime in runtimes
        ]
    for path in target.files:
        able = [runtime for runtime in SUFFIXES[path.suffix] if runtime in runtimes]
        missing = [name for name in able if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None]
        skipped += [
            f"{PACKAGES[name]} is not installed, so {path.suffix} files are not measured in it" for name in missing
        ]
        if able and set(able) - set(missing):
            opened = open_file(path)
            about = opened.about
            own = {key: about.get(key) for key in ("parameters", "macs")}
            made += [
                Candidate(
                    target.name,
                    runtime,
                    path,
                    (about["input"]["channels"], *about["input"]["size"]),
                    about["input"]["type"],
                    opened.batch,
                    about.get("precision", "float32"),
                    path.stat().st_size,
                    cost if target.model is not None else own,
                    about.get("fingerprint"),
                )
                for runtime in able
                if runtime not in missing
            ]
    return made, skipped


def open_file(path: Path) -> Any:
    """An exported file in its runtime.

    Raises:
        UserError: it is not an exported file.
    """
    try:
        return Pt2Runtime(path) if path.suffix == ".pt2" else open_model(path, 1)
    except BadFile as error:
        raise UserError(str(error)) from None
