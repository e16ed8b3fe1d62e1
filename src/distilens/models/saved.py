"""Saved models: a folder with the weights in `model.safetensors` and the description of the network in `model.json`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distilens.foundation.errors import UserError
from distilens.foundation.fingerprints import fingerprint_of_state
from distilens.foundation.notation import Spec
from distilens.tasks import Classification, task_from
from distilens.tasks.saving import plain_task

if TYPE_CHECKING:
    from torch import nn

    from distilens.models.model import Model


class Part(BaseModel):
    """A part that a method inserted into a model: its place and its notation."""

    name: str
    tap: str
    part: str | None = None


class Description(BaseModel):
    """The content of `model.json`. No names are protected: some versions of pydantic protect those that begin with `model`."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    classes: Annotated[list[str], Field(min_length=1)] | None
    task: dict[str, Any] | None = None
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    mean: list[float]
    std: list[float]
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    parts: list[Part] = []
    config: dict[str, Any] | None = None
    """The configuration of a network of transformers: it can be built where its folder or the hub is not."""


def described(file: Path) -> Description:
    """The content of a `model.json`.

    Raises:
        UserError: it does not describe a model. The message names the first wrong key.
    """
    from distilens.foundation.files import read_json

    content = read_json(file)
    if isinstance(content, dict) and "task" in content:
        content = {"classes": None, **content}
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"the key {where!r} is missing" if first["type"] == "missing" else f"{where}: {first['msg']}"
        raise UserError(
            f"{file} does not describe a model: {what}. Expected are the keys that save_model writes: model, classes, size, "
            "mean, std"
        ) from None


def save_model(model: Model, folder: str | Path) -> None:
    """Write `model.safetensors` (the bare network and its parts) and `model.json` (how to build it again).

    It warns if `load_model` cannot build the network: a module of your own without a notation.
    """
    from safetensors.torch import save

    from distilens.foundation.files import write_atomically, write_json

    folder, config = Path(folder), config_of(model.network)
    if config is None and is_own_module(model.name):
        warnings.warn(
            f"load_model cannot build {model.name} again: the place of its class is unknown. Give the model "
            "name='python:module:callable' before it is saved, or keep the class and load the weights into it yourself",
            stacklevel=2,
        )
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.bare_state().items()}
    about = {
        "model": model.name,
        **(
            {"classes": list(model.classes)}
            if isinstance(model.task, Classification)
            else {"task": plain_task(model.task)}
        ),
        "size": list(model.size),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "interpolation": model.interpolation,
        "parts": [
            {"name": name, "tap": inserted.path, "part": getattr(inserted.part, "notation", None)}
            for name, inserted in model.inserted.items()
        ],
        **({"config": config} if config else {}),
    }
    write_atomically(folder / "model.safetensors", lambda path: path.write_bytes(save(state)))
    write_json(folder / "model.json", about)


def load_model(folder: str | Path) -> Model:
    """The model that `save_model` wrote.

    Raises:
        UserError: there is no model, or the weights do not fit its description.
    """
    from distilens.models import build_network, fill_lazy
    from distilens.models.adapters import Expecting, network_of_config
    from distilens.models.model import Model
    from distilens.models.padding import fit_size
    from distilens.models.parts import build_part
    from distilens.models.weights import fit, load_state

    folder = Path(folder)
    for name in ("model.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"no model in {folder}: {name} is missing")
    about = described(folder / "model.json")
    if about.config is None and is_own_module(about.model):
        raise UserError(
            f"the model in {folder} was saved from a module of your own, {about.model}, and it is unknown how to build it. In "
            "Python: Model(network, classes, size=...), then model.load_bare_state(safetensors.torch.load_file(...)). Or give it "
            "name='python:module:callable' before it is saved"
        )
    task = Classification(tuple(about.classes or ())) if about.task is None else task_from(about.task)
    if about.config is not None:
        network, multiple = network_of_config(about.config, task.outputs, dense=task.dense), None
    else:
        made = build_network(architecture(about.model, about.size), task.outputs, dense=task.dense)
        network, multiple = made.network, made.multiple if isinstance(made, Expecting) else None
    model = Model(
        network.float(),
        task,
        size=about.size,
        mean=about.mean,
        std=about.std,
        name=about.model,
        interpolation=about.interpolation,
    )
    model.loaded = True
    fill_lazy(model)
    fit_size(model, multiple)
    for part in about.parts:
        if part.part is None:
            raise UserError(
                f"the model in {folder} has a part {part.name!r} that is not a part of distilens: build the model yourself, "
                "insert the part, and call load_bare_state with the weights"
            )
        model.insert(part.tap, build_part(part.part), name=part.name)
    state = load_state(folder / "model.safetensors")
    inside = {key: value for key, value in state.items() if not key.startswith("parts.")}
    fit(model.network, inside, where=str(folder), architecture=about.model)
    parts = {key.removeprefix("parts."): value for key, value in state.items() if key.startswith("parts.")}
    fit(
        model.parts,
        parts,
        where=f"{folder} (parts)",
        architecture=str([part.part for part in about.parts]),
    )
    return model.eval()


def config_of(network: nn.Module) -> dict[str, Any] | None:
    """The configuration of a network of transformers, as plain data; None for others."""
    if not type(network).__module__.startswith("transformers."):
        return None
    return json.loads(cast(Any, network).config.to_json_string(use_diff=False))


def is_own_module(name: str) -> bool:
    """Whether a model's name is not a notation, such as that of your own module. It cannot be built from its name."""
    from distilens.models import MODELS

    try:
        return Spec.parse(name).name not in MODELS.entries
    except UserError:
        return True


def architecture(part: str | Spec, size: tuple[int, int]) -> Spec:
    """A part without its weights, which are loaded from elsewhere. So their original file or download is not needed."""
    from distilens.models import MODELS

    spec = Spec.parse(part)
    if spec.name == "file":
        return architecture(spec.options["model"], size)
    known = MODELS.options(spec.name)
    options: dict[str, Any] = {
        key: value for key, value in (("pretrained", "false"), ("weights", "none")) if key in known
    }
    if spec.name in ("timm", "torchvision"):
        options["size"] = size[0] if size[0] == size[1] else size
    if "model" in known:
        options["model"] = str(architecture(spec.options.get("model", known["model"].default), size))
    return spec.replaced(**options)


def fingerprint_of(model: Model) -> str:
    """The fingerprint of a model in memory."""
    return fingerprint_of_state(model.bare_state())


def fingerprint_of_file(path: Path) -> str:
    """The fingerprint of a model in a `model.safetensors` that `save_model` wrote."""
    from safetensors.torch import load

    return fingerprint_of_state(load(path.read_bytes()))
