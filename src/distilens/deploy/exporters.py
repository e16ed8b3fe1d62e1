"""The formats of exported files. An exporter writes a file and opens it again in its runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from distilens.deploy.predict import BadFile
from distilens.deploy.shipped import Shipped
from distilens.foundation.errors import UserError
from distilens.foundation.notation import Registry
from distilens.models.model import Model

EXPORTERS = Registry(
    "format",
    {
        "onnx": "distilens.deploy.to_onnx:Onnx",
        "executorch": "distilens.deploy.to_executorch:ExecuTorch",
        "pt2": "distilens.deploy.to_pt2:Pt2",
        "safetensors": "distilens.deploy.to_safetensors:Safetensors",
    },
)


@runtime_checkable
class Runtime(Protocol):
    """An exported file, opened in its runtime.

    Attributes:
        about: the metadata that travel in the file: see `Shipped.about`.
        batch: the only number of images per call; None if any number is possible.
    """

    @property
    def about(self) -> Mapping[str, Any]: ...

    @property
    def batch(self) -> int | None: ...

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """The outputs for images `[b 3 h w]` of the file's type and size, in the order of `about["outputs"]`."""
        ...


class Exporter:
    """A format: `write` makes a file of a student, `open` runs it.

    Attributes:
        suffix: the end of the file's name; empty for a folder.
        extra: the extra of distilens that installs its packages.
        packages: the packages that it imports.
        quantizes: whether `write` can make an INT8 file.
    """

    suffix: str = ""
    extra: str = ""
    packages: tuple[str, ...] = ()
    quantizes = False

    def check_installed(self) -> None:
        """Raise a `UserError` if a package is missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
                f"pip install 'distilens[{self.extra}]'"
            )

    def write(self, shipped: Shipped, path: Path, about: Mapping[str, Any], calibration: Tensor | None = None) -> None:
        """Write the student.

        Args:
            path: the file; it does not exist yet.
            about: the metadata to write into it.
            calibration: images of the file's type `[n 3 h w]`; with them the file becomes INT8.

        Raises:
            UserError: the format cannot express the network; the message names the operation or the module.
        """
        raise NotImplementedError

    def open(self, path: Path) -> Runtime:
        """Open a file in its runtime.

        Raises:
            UserError: it is not a file of this format.
        """
        raise NotImplementedError


class RuntimeNetwork(nn.Module):
    """An exported file as a network, so that it can be measured and explained like any model (without gradients)."""

    def __init__(self, runtime: Runtime):
        super().__init__()
        self.runtime = runtime

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(np.array(run_batches(self.runtime, images)[0]))


def named_outputs(runtime: Runtime, images: Tensor) -> dict[str, Tensor]:
    """All outputs by name for images in [0, 1] of the file's size."""
    made = run_batches(runtime, images)
    return {
        name: torch.from_numpy(np.array(values)) for name, values in zip(runtime.about["outputs"], made, strict=True)
    }


def run_batches(runtime: Runtime, images: Tensor) -> list[np.ndarray]:
    """All outputs for images in [0, 1], converted to the file's type, in batches of its size."""
    pixels = images.detach().cpu().contiguous()
    if runtime.about["input"]["type"] == "uint8":
        pixels = (pixels * 255).round().clamp(0, 255).byte()
    array = pixels.numpy()
    size = runtime.batch or max(1, len(array))
    try:
        parts = [runtime(array[start : start + size]) for start in range(0, len(array), size)]
    except BadFile as error:
        raise UserError(str(error)) from None
    return [np.concatenate(output) for output in zip(*parts, strict=True)]


class FileModel(Model):
    """An exported file as a `Model`: it only resizes. The file normalises by itself."""

    def prepare(self, images: Tensor) -> Tensor:
        return images if images.shape[-2:] == self.size else self.resized(images)


def as_model(runtime: Runtime, model: Model) -> FileModel:
    """An exported file as a `Model` with the student's task and mean colour."""
    height, width = runtime.about["input"]["size"]
    made = FileModel(
        RuntimeNetwork(runtime),
        model.task,
        size=(height, width),
        mean=model.mean.flatten().tolist(),
        std=model.std.flatten().tolist(),
        name=f"{model.name} in a file",
        interpolation=model.interpolation,
    )
    return made.eval()


@contextlib.contextmanager
def explain_failures(shipped: Shipped, form: str) -> Iterator[None]:
    """Turn what torch's exporters raise into a `UserError` that names the module and the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn about their own parts
            yield
    except (UserError, OSError):  # a full disk is said elsewhere
        raise
    except Exception as error:
        raise UserError(
            f"{shipped.model.name} cannot be exported to {form}: {reason_of(error)}{place_of(shipped, error)}"
        ) from error


def reason_of(error: BaseException) -> str:
    """The shortest line of an exporter's error that says what is wrong."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    root = chain[-1]
    text = str(root)
    if "data-dependent" in text.lower() or "GuardOnDataDependent" in type(root).__name__:
        return "its forward decides by the values of tensors (data-dependent control flow), which a fixed graph cannot hold"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(root).__name__)[:300]


def place_of(shipped: Shipped, error: BaseException) -> str:
    """Where an export failed, as ` (at the module layer1.0)`; empty if it cannot be found."""
    path = module_of_operation(shipped, str(error)) or module_that_ran(shipped, error)
    return f" (at the module {path})" if path else ""


def module_of_operation(shipped: Shipped, text: str) -> str | None:
    """The path of the module with the operation that an exporter does not know."""
    named = re.search(r"aten[.:]+(\w+)", text)
    if named is None:
        return None
    with contextlib.suppress(Exception):
        program = torch.export.export(shipped, (shipped.example(1),)).run_decompositions()
        for node in program.graph.nodes:
            if named[1] in str(node.target):
                paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
                return next((path.rpartition("network.")[2] for path in reversed(paths) if "network." in path), None)
    return None


def module_that_ran(shipped: Shipped, error: BaseException) -> str | None:
    """The path of the innermost module in whose forward an error was raised."""
    modules = {id(module): path for path, module in shipped.model.network.named_modules() if path}
    found = None
    for each in (error, error.__cause__, error.__context__):
        for frame in frames_of(each):
            found = modules.get(id(frame.tb_frame.f_locals.get("self")), found)
    return found


def frames_of(error: BaseException | None) -> Iterator[Any]:
    """The frames of an error's traceback."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        yield trace
        trace = trace.tb_next
