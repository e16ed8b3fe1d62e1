"""Answer pictures with an exported model. This file works alone: it needs NumPy, Pillow and onnxruntime, and never imports torch.

    python predict.py student.onnx pictures/ photo.jpg [--top 3] [--json] [--explain maps/]
    python predict.py segmenter.onnx pictures/ --out masks/

An export writes a copy of this file beside the model. `distilens predict` is the same program.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib.util
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KEY = "distilens"
"""The key of the metadata in an ONNX file, and the method that returns them in a `.pte` file."""
KIND = "distilens export 1"
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SUFFIXES |= {".pbm", ".pnm", ".tga", ".jp2", ".avif"}
"""The files of a folder that are taken as pictures."""
GROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255), "grey": (128, 128, 128, 255)}
SEGMENTATION = ["logits", "mask"]
"""The outputs of a model for segmentation, which gives a class for each pixel."""
ORIENTATION = 274
"""The number of EXIF's orientation."""
SIDEWAYS = (5, 6, 7, 8)
"""The values of EXIF's orientation with which height and width are exchanged."""
LARGEST = 8192
"""The longest side of an input that is believed."""
PROBES = 256
"""The largest number of images per call while a map is made."""
PROBED_PIXELS = 2**24
"""The largest number of pixels per call while a map is made: 200 MB of float32."""


class BadFile(Exception):  # noqa: N818  # the file is bad
    """A model that cannot be used, or a folder that cannot be written; the message says why."""


class BadPicture(Exception):  # noqa: N818
    """A picture that cannot be answered; the message says why."""


# ------------------------------------------------------------------------------------------------------- the exported file


class OnnxFile:
    """An ONNX file in ONNX Runtime, on the CPU.

    Nothing of the file is executed but ONNX Runtime's own operators, and no weights are read from outside its folder.

    Args:
        path: the file.
        threads: the number of threads per call; by default all cores.

    Raises:
        BadFile: it is not an ONNX file, not one of distilens, or it asks for what is refused.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        if importlib.util.find_spec("onnxruntime") is None:
            raise BadFile("onnxruntime is not installed: pip install onnxruntime")
        import onnxruntime

        self.path = Path(path)
        content = read_file(self.path)
        check_external(content, self.path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads:
            options.intra_op_num_threads = threads
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self.path.parent))
        options.add_session_config_entry("session.load_model_format", "ONNX")  # or ORT's own format is read unchecked
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            found = self.session.get_modelmeta().custom_metadata_map.get(KEY)
            inputs = [(one.name, one.type, list(one.shape)) for one in self.session.get_inputs()]
            outputs = [one.name for one in self.session.get_outputs()]
        except UnicodeDecodeError:
            raise BadFile(f"{self.path} is damaged: it has names that are not text") from None
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise BadFile(explain_session(self.path, error)) from None
        self.about = check_about(found, self.path)
        check_fit(inputs, outputs, self.about, self.path)
        self.input, _, shape = inputs[0]
        self.batch: int | None = 1 if isinstance(shape[0], int) else None

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        try:
            outputs: Any = self.session.run(None, {self.input: images})
        except Exception as error:
            raise BadFile(f"{self.path} cannot be run: {first_line(error)}") from None
        return outputs


class PteFile:
    """An ExecuTorch file in ExecuTorch's Python runtime. That runtime loads torch by itself; phones need only the C++ runtime.

    Raises:
        BadFile: it cannot be used.
    """

    batch = 1

    def __init__(self, path: str | Path):
        if importlib.util.find_spec("executorch") is None:
            raise BadFile("executorch is not installed: pip install executorch")
        self.path = Path(path)
        read_file(self.path)
        with warnings.catch_warnings(), quiet_stderr():
            warnings.simplefilter("ignore")
            from executorch.runtime import Runtime

            try:
                self.program: Any = Runtime.get().load_program(self.path)
                self.forward = self.program.load_method("forward")
                about = self.program.load_method(KEY).execute([])[0]
            except Exception as error:
                raise BadFile(
                    f"{path} is not an ExecuTorch file of distilens export, or it is damaged: {first_line(error)}"
                ) from None
        self.about: dict[str, Any] = check_about(about, self.path)

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        import torch

        try:
            return [output.numpy().copy() for output in self.forward.execute([torch.from_numpy(images)])]
        except Exception as error:
            raise BadFile(f"{self.path} cannot be run: {first_line(error)}") from None


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send the process's stderr to nowhere: ExecuTorch writes there from C++."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def read_file(path: Path) -> bytes:
    """The bytes of a model file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from None
    if not content:
        raise BadFile(f"{path} is empty")
    return content


def check_external(content: bytes, path: Path) -> None:
    """Refuse a model whose weights lie outside its folder."""
    try:
        names = list(external_files(content))
    except (ValueError, IndexError):
        raise BadFile(f"{path} is not an ONNX file, or it is damaged") from None
    for name in names:
        if not lies_inside(path.parent, name):
            raise BadFile(f"{path} wants to read {name!r}, which is outside its folder: such a file is refused")


def lies_inside(folder: Path, name: str) -> bool:
    """Whether a relative path leads to a place in a folder, links followed."""
    if os.path.isabs(name) or "_ORT_MEM_ADDR_" in name:  # ONNX Runtime's word for an address in memory
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a zero byte
        return False


MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
"""Where tensors can stand in an ONNX file: the fields of onnx.proto that lead to them, by their numbers."""


def external_files(content: bytes) -> Iterator[str]:
    """The places of external weights in an ONNX file, of all tensors wherever they stand.

    Raises:
        ValueError, IndexError: these bytes are not a protobuf message.
    """
    todo = [("model", memoryview(content))]
    while todo:
        kind, message = todo.pop()
        if kind == "external":  # a pair: key and value are fields 1 and 2
            pair = list(read_fields(message))
            if any(number == 1 and value == b"location" for number, value in pair):
                yield from (os.fsdecode(bytes(value)) for number, value in pair if number == 2)
            continue
        inside = MESSAGES[kind]
        todo += [(inside[number], value) for number, value in read_fields(message) if number in inside]


def read_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message that are messages or strings: number and content. Other fields are skipped."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        number, wire = tag >> 3, tag & 7
        if not number or tag >= 2**32 or wire not in (0, 1, 2, 5):
            raise ValueError("this is not protobuf")
        if wire == 0:
            _, at = read_varint(message, at)
            continue
        length, at = read_varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + length > len(message):
            raise ValueError("this protobuf message is cut off")
        if wire == 2:
            yield number, message[at : at + length]
        at += length


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of protobuf's variable length, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("this number is too long")


def explain_session(path: Path, error: Exception) -> str:
    """Why ONNX Runtime does not open a file."""
    text = first_line(error)
    if "is not a registered function/op" in text or "No opset import for domain" in text or "not a registered" in text:
        return f"{path} uses an operator that ONNX Runtime does not have, and such a file is refused: {text}"
    if "Protobuf parsing failed" in text or "INVALID_PROTOBUF" in text:
        return f"{path} is not an ONNX file, or it is damaged"
    return f"{path} cannot be opened by ONNX Runtime: {text}"


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 300)


def shorten(value: object, length: int = 80) -> str:
    """A value in a message, cut if it is long."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}..."


def check_about(found: object, path: Path) -> dict[str, Any]:
    """The metadata that an export wrote into the file. A stranger may have made it, so nothing in it is believed unchecked.

    Raises:
        BadFile: there are none, or they are not as an export writes them.
    """
    try:
        about = json.loads(found if isinstance(found, str) else "")
    except (ValueError, RecursionError):
        about = None
    kind = about.get("kind") if isinstance(about, dict) else None
    if isinstance(kind, str) and kind != KIND and kind.startswith("distilens export "):
        raise BadFile(f"{path} was written by another version of distilens: use the predict.py that lies beside it")
    if not isinstance(about, dict) or kind != KIND:
        raise BadFile(
            f"{path} was not written by distilens export, so its classes and its pixels are unknown. Export it again: "
            "distilens export RUN"
        )
    wrong = find_wrong(about)
    if wrong:
        raise BadFile(f"{path} does not fit its own description: {wrong}")
    return about


def find_wrong(about: Mapping[str, Any]) -> str:
    """What is wrong in a file's description; empty if nothing is."""
    if not isinstance(about.get("input"), dict):
        return "it does not say what the input is"
    taken: dict[str, Any] = about["input"]
    size: Any = taken.get("size")
    mean: Any = taken.get("mean")
    channels: Any = taken.get("channels")
    outputs: Any = about.get("outputs")
    if not (is_list(size, int, (2,)) and all(1 <= side <= LARGEST for side in size)):
        return f"the size of its input is {shorten(size)}"
    if taken.get("type") not in ("uint8", "float32"):
        return f"the type of its input is {shorten(taken.get('type'))}"
    if not is_list([channels], int) or not 1 <= channels <= 256:
        return f"the channels of its input are {shorten(channels)}"
    if not is_list(mean, (int, float), (1, channels)):
        return f"its mean colour is {shorten(mean)}"
    if not is_list(outputs, str) or outputs[0] != "logits" or len(set(outputs)) < len(outputs):
        return f"its outputs are {shorten(outputs)}"
    named: Any = about.get("classes")
    if ("probabilities" in outputs or "mask" in outputs) and not is_list(named, str):
        return f"its classes are {shorten(named)}"
    if "mask" in outputs and (outputs != SEGMENTATION or len(named) > 255):
        return f"a mask needs the outputs logits, mask and at most 255 classes; it has {shorten(outputs)}, {len(named)} classes"
    pixels: Any = about.get("pixels", {})
    if not isinstance(pixels, dict) or pixels.get("ground") not in (None, *GROUNDS):
        return f"its pixels are {shorten(pixels)}"
    bounds: Any = pixels.get("range")
    if bounds is not None and not (is_list(bounds, (int, float), (2,)) and bounds[0] < bounds[1]):
        return f"the range of its pixels is {shorten(bounds)}"
    return ""


def is_list(value: Any, kind: Any, lengths: Sequence[Any] | None = None) -> bool:
    """Whether a value is a list of one kind (numbers must be finite and moderate), of one of the lengths; never empty."""
    return (
        isinstance(value, list)
        and bool(value)
        and (lengths is None or len(value) in lengths)
        and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
        and all(isinstance(item, str) or -1e9 <= item <= 1e9 for item in value)
    )


def check_fit(
    inputs: Sequence[tuple[str, str, list[Any]]], outputs: Sequence[str], about: Mapping[str, Any], path: Path
) -> None:
    """Raise `BadFile` if inputs (names, types, shapes) and outputs of an ONNX file are others than its metadata say."""
    kind = "tensor(uint8)" if about["input"]["type"] == "uint8" else "tensor(float)"
    expected = [1, about["input"]["channels"], *about["input"]["size"]]
    fits = len(inputs) == 1 and inputs[0][1] == kind and len(inputs[0][2]) == 4
    if not fits or any(isinstance(given, int) and given != n for given, n in zip(inputs[0][2], expected, strict=True)):
        given = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in inputs)
        raise BadFile(f"{path} does not fit its own description: its inputs are {shorten(given)}")
    if list(outputs) != about["outputs"]:
        raise BadFile(f"{path} does not fit its own description: its outputs are {shorten(', '.join(outputs))}")


def open_model(path: str | Path, threads: int | None = None) -> Any:
    """An exported file in the runtime of its format.

    Raises:
        BadFile: there is no such file, or it cannot be used.
    """
    path = Path(path)
    if os.path.isdir(path):
        inside = sorted([*path.glob("*.onnx"), *path.glob("*.pte")])
        raise BadFile(
            f"{path} is a folder. Give the file: {inside[0]}"
            if inside
            else f"{path} is a folder, not an exported model"
        )
    if not os.path.exists(path):
        raise BadFile(f"there is no file {path}")
    if not os.path.isfile(path):
        raise BadFile(f"{path} is not a regular file")
    if path.suffix == ".pte":
        return PteFile(path)
    if path.suffix != ".onnx":
        raise BadFile(f"{path} is neither an .onnx nor a .pte file: only these are predicted with")
    return OnnxFile(path, threads)


# --------------------------------------------------------------------------------------------------------------- pictures


def find_pictures(given: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """The files of the given files, folders (with their folders) and patterns such as `*.jpg`; and what is wrong with each.

    Hidden files are left out, unless they are named.
    """
    for name in given:
        path = Path(name)
        if os.path.isdir(path):
            yield from pictures_of(path)
        elif not os.path.lexists(path) and glob.has_magic(name):
            found = sorted(map(Path, glob.glob(name, recursive=True)), key=lambda match: (len(match.parts), match))
            matches = {
                (os.path.realpath(match.parent), match.name): match for match in reversed(found)
            }  # links may go round
            for match in sorted(matches.values()):
                yield from pictures_of(match) if os.path.isdir(match) else [(match, "")]
            if not matches:
                yield path, "nothing matches this pattern"
        else:
            yield path, ""


def pictures_of(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of a folder and of its folders, links to folders followed once; and the folders that cannot be read."""
    found: list[tuple[Path, str]] = []
    seen = {os.path.realpath(folder)}

    def complain_later(error: OSError) -> None:
        found.append((Path(error.filename), (error.strerror or "it cannot be read").lower()))

    for here, folders, files in os.walk(folder, followlinks=True, onerror=complain_later):
        places = {name: os.path.realpath(Path(here, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, place in places.items() if place not in seen]
        seen.update(places.values())
        pictures = (Path(here, name) for name in files if not name.startswith("."))
        found += [(path, "") for path in pictures if path.suffix.lower() in SUFFIXES]
    return sorted(found) or [(folder, "there is no picture in this folder")]


def read_picture(path: Path, about: Mapping[str, Any]) -> np.ndarray:
    """A picture as the network expects it, without its own size: see `read_sized`."""
    return read_sized(path, about)[0]


def read_sized(path: Path, about: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture as the network expects it, uint8 `[h w 3]` and upright; and the picture's own height and width.

    It is scaled to cover the input, and its middle is cut out. For a segmentation the whole picture is scaled to the input, so
    that each of its pixels gets a class.

    Raises:
        BadPicture: it cannot be read.
    """
    from PIL import Image, ImageOps

    height, width = about["input"]["size"]
    if os.path.exists(path) and not os.path.isfile(path):
        raise BadPicture("it is not a regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks about metadata
            with Image.open(path) as image:
                if image.format == "EPS":
                    raise BadPicture("EPS is a program and not a picture: convert it")
                across, down = image.size if image.getexif().get(ORIENTATION) not in SIDEWAYS else image.size[::-1]
                image.draft("RGB", (2 * max(height, width), 2 * max(height, width)))
                ImageOps.exif_transpose(image, in_place=True)
                rgb = as_rgb(image, about.get("pixels") or {})
                if "mask" in about["outputs"]:
                    rgb = rgb if rgb.size == (width, height) else rgb.resize((width, height), Image.Resampling.BICUBIC)
                    return np.asarray(rgb), (down, across)
                return np.asarray(fit(rgb, height, width)), (down, across)
    except Exception as error:  # on broken files Pillow's readers raise errors of any kind
        raise BadPicture(explain_picture(path, error)) from None


def explain_picture(path: Path, error: Exception) -> str:
    """Why a picture cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "a link that leads nowhere" if path.is_symlink() else "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if type(error).__name__ == "DecompressionBombError":
        return "it has more pixels than Pillow's limit: a small file may fill the memory. Make it smaller first"
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is empty" if not path.stat().st_size else "it is not a picture"
    return first_line(error).rstrip(".")


def as_rgb(image: Any, pixels: Mapping[str, Any]) -> Any:
    """Any picture in RGB: deep values are scaled, transparency is laid over the ground."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        low, high = pixels.get("range") or ((0, 1) if image.mode == "F" else (0, 65535))
        values = np.asarray(image).astype(np.float32)
        if not np.isfinite(values).all():
            raise BadPicture("it holds values that are NaN or infinite")
        scaled = ((values - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        ground = GROUNDS[pixels.get("ground") or "white"]
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB")


def fit(image: Any, height: int, width: int) -> Any:
    """Scale the picture until it covers height and width, then cut out its middle."""
    from PIL import Image

    scale = max(width / image.width, height / image.height)
    across, down = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if image.size != (across, down):
        image = image.resize((across, down), Image.Resampling.BICUBIC)
    left, top = (across - width) // 2, (down - height) // 2
    return image.crop((left, top, left + width, top + height))


def as_input(pictures: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """Pictures uint8 `[b h w 3]` as the file takes them: `[b 3 h w]`, uint8 or float in [0, 1]."""
    planes = np.ascontiguousarray(np.moveaxis(pictures, -1, 1))
    return planes if about["input"]["type"] == "uint8" else planes.astype(np.float32) / 255


# ----------------------------------------------------------------------------------------------------------------- answers


def answer(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name for images `[b 3 h w]` as the file takes them.

    Raises:
        BadFile: the outputs do not fit the file's description.
    """
    size = model.batch or len(images)
    parts = [model(images[start : start + size]) for start in range(0, len(images), size)]
    names = model.about["outputs"]
    if any(len(part) != len(names) for part in parts):
        raise BadFile(f"{model.path} does not fit its own description: it has {len(parts[0])} outputs")
    found = {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}
    classes = len(model.about.get("classes") or ())
    expected = (len(images), classes) if {"probabilities", "mask"} & found.keys() else found["logits"].shape[:1]
    for name, values in found.items():
        fits = values.dtype == np.float32 and values.shape[: len(expected)] == expected and len(values) == len(images)
        if "mask" in found:
            places = (len(images), *images.shape[2:])
            fits = fits and values.shape[2:] == places[1:]
            if name == "mask":
                fits = values.dtype == np.uint8 and values.shape == places and bool((values < classes).all())
        if not fits:
            raise BadFile(
                f"{model.path} does not fit its own description: its {shorten(name)} are {values.dtype} {values.shape}, "
                f"for {len(images)} images and {classes} classes"
            )
    return found


def occlusion(model: Any, image: np.ndarray, target: int) -> np.ndarray:
    """How much the class's logit falls when a window hides part of the image `[3 h w]`: `[h w]`; the explainer `occlusion`.

    The window is a square of a quarter of the shorter side. It moves by half its side. Hidden pixels get the mean colour.
    """
    height, width = image.shape[1:]
    side = max(1, min(height, width) // 4)
    stride = max(1, side // 2)
    rows, columns = (range(math.ceil(max(0, length - side) / stride) + 1) for length in (height, width))
    windows = [(row * stride, column * stride) for row in rows for column in columns]
    fill = np.asarray(model.about["input"]["mean"], dtype=np.float32)
    if image.dtype == np.uint8:
        fill = (fill * 255).round().clip(0, 255)
    before = answer(model, image[None])["logits"][0, target]
    total, covered = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    probes = max(1, min(PROBES, PROBED_PIXELS // (height * width)))
    for start in range(0, len(windows), probes):
        part = windows[start : start + probes]
        hidden = np.repeat(image[None], len(part), 0)
        for probe, (top, left) in zip(hidden, part, strict=True):
            probe[:, top : top + side, left : left + side] = fill[:, None, None]
        for (top, left), logit in zip(part, answer(model, hidden)["logits"][:, target], strict=True):
            total[top : top + side, left : left + side] += before - logit
            covered[top : top + side, left : left + side] += 1
    return total / covered.clip(1)


def overlay(picture: np.ndarray, values: np.ndarray) -> Any:
    """The picture with its map: orange where the class gains, blue where it loses."""
    from PIL import Image

    height, width = picture.shape[:2]
    scaled = values.astype(np.float32) / (np.abs(values).max() or 1)
    large = np.asarray(Image.fromarray(scaled).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    grey = picture.mean(2, keepdims=True).repeat(3, 2)
    colour = np.where(large > 0, np.array([230, 97, 1.0]), np.array([33, 102, 172.0]))
    strength = 0.75 * np.abs(large)
    return Image.fromarray((grey * (1 - strength) + colour * strength).clip(0, 255).astype(np.uint8))


def explain(model: Any, image: np.ndarray, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The map of an image's top class: the one in the file's outputs if there is one, else by occlusion."""
    target = int(outputs["logits"][0].argmax())
    return outputs["maps"][0, target] if "maps" in outputs else occlusion(model, image, target)


def mask_at(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask uint8 `[h w]` at another height and width, by nearest neighbour."""
    from PIL import Image

    height, width = size
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def as_palette(mask: np.ndarray) -> Any:
    """A picture with a palette whose indices are the numbers of the classes. Its colours are those of PASCAL VOC: 0 is black."""
    from PIL import Image

    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):  # three bits of the number at a time, from the colours' highest bit to their lowest
        for channel in range(3):
            colours[:, channel] |= ((np.arange(256) >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    image = Image.fromarray(mask)
    image.putpalette(colours.tobytes())
    return image


def describe_mask(about: Mapping[str, Any], mask: np.ndarray, top: int | None) -> list[tuple[str, float]]:
    """The classes of a mask, each with its share of the pixels, the largest first; all that occur, or the first `top`."""
    counts = np.bincount(mask.ravel(), minlength=len(about["classes"]))
    order = [number for number in np.argsort(-counts, kind="stable") if counts[number]]
    return [(about["classes"][number], float(counts[number] / mask.size)) for number in order[:top]]


def describe(about: Mapping[str, Any], outputs: Mapping[str, np.ndarray], top: int) -> list[tuple[str, float]]:
    """The most probable classes of one picture, each with its probability; the plain numbers for other tasks."""
    if "probabilities" not in outputs:
        return [(f"output {place}", float(value)) for place, value in enumerate(outputs["logits"][0].ravel())]
    probabilities = outputs["probabilities"][0]
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [(about["classes"][place], float(probabilities[place])) for place in best]


# ----------------------------------------------------------------------------------------------------------------- command


def predict(
    file: str | Path,
    images: Sequence[str],
    *,
    top: int | None = None,
    as_json: bool = False,
    explained: Path | None = None,
    out: Path | None = None,
) -> int:
    """Print the answer for each picture. Bad pictures are named on stderr, and the others go on.

    Args:
        file: the exported model.
        images: files, folders and patterns.
        top: the number of classes per picture, at least 1; by default 1, and in a segmentation all that occur.
        as_json: one JSON object per picture.
        explained: the folder for pictures of the maps.
        out: of a segmentation: the folder for the masks. A mask is a PNG of the picture's own size with the number of each
            pixel's class; its colours are a palette.

    Returns:
        the exit status: 0, or 1 if a picture could not be read.

    Raises:
        BadFile: the model cannot be used, or a map or a mask cannot be written.
    """
    if top is not None and top < 1:
        raise BadFile(f"--top is the number of classes per picture, 1 or more; given {top}")
    if not images:
        raise BadFile("name the pictures: files, folders, or patterns such as 'photos/*.jpg'")
    model = open_model(file)
    if model.about["input"]["channels"] != 3:
        raise BadFile(f"{file} takes images of {model.about['input']['channels']} channels, and pictures have 3")
    check_folders(model.about, str(file), explained, out)
    pictures = list(find_pictures(images))
    for folder, option, what in ((explained, "--explain", "Maps"), (out, "--out", "Masks")):
        if folder:
            prepare_folder(folder, [path for path, _ in pictures], option, what)
    failed, names = False, set[Path]()
    for path, problem in pictures:
        try:
            if problem:
                raise BadPicture(problem)
            picture, size = read_sized(path, model.about)
            image = as_input(picture[None], model.about)
            outputs = answer(model, image)
            if not all(np.isfinite(values).all() for values in outputs.values()):
                raise BadPicture("the model's answer is not a number")
        except BadPicture as error:
            failed = True
            complain(f"{path}: {error}")
            if as_json:
                print(json.dumps({"file": str(path), "error": str(error)}), flush=True)
            continue
        written = None
        if "mask" in outputs:
            mask = mask_at(outputs["mask"][0], size)
            if out:
                written = free_name(out, path, names)
                save(as_palette(mask), written)
            best = describe_mask(model.about, mask, top)
        else:
            if explained:
                written = free_name(explained, path, names)
                save(overlay(picture, explain(model, image[0], outputs)), written)
            best = describe(model.about, outputs, top or 1)
        print_answer(path, best, model.about, as_json, written)
    return int(failed)


def check_folders(about: Mapping[str, Any], file: str, explained: Path | None, out: Path | None) -> None:
    """Raise `BadFile` if maps or masks are asked of a model that gives none."""
    dense = "mask" in about["outputs"]
    if explained and "probabilities" not in about["outputs"]:
        advice = ". It gives a class for each pixel: --out DIR writes the masks" if dense else ""
        raise BadFile(f"--explain shows maps of classes, and {file} is not a classification{advice}")
    if out and not dense:
        raise BadFile(
            f"--out writes the masks of a segmentation, and {file} gives one answer per picture: leave it out"
        )


def print_answer(
    path: Path, best: Sequence[tuple[str, float]], about: Mapping[str, Any], as_json: bool, written: Path | None
) -> None:
    """One line for a picture. JSON is in ASCII, and other text has no control characters: no name can steer the terminal."""
    if as_json:
        entry: dict[str, Any] = {"file": str(path)}
        if "mask" in about["outputs"]:
            entry["shares"] = [{"class": name, "share": share} for name, share in best]
        elif "probabilities" in about["outputs"]:
            entry["top"] = [{"class": name, "probability": share} for name, share in best]
        else:
            entry["outputs"] = [value for _, value in best]
        if written:
            entry["mask" if "mask" in about["outputs"] else "map"] = str(written)
        print(json.dumps(entry), flush=True)
    else:
        print(printable(str(path)), *(f"{printable(name)} {share:.3f}" for name, share in best), sep="\t", flush=True)


def printable(text: str) -> str:
    """A text with escapes in the place of control characters."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def complain(text: str) -> None:
    """Print a message on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def prepare_folder(folder: Path, pictures: Sequence[Path], option: str, what: str) -> None:
    """Make the folder for maps or masks. A folder that holds one of the pictures is refused: a map could replace a picture.

    Raises:
        BadFile: it cannot be made, or it holds a picture.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"the folder {folder} cannot be made: {error.strerror}") from None
    inside = next((path for path in pictures if os.path.realpath(path.parent) == os.path.realpath(folder)), None)
    if inside is not None:
        raise BadFile(f"{option} {folder}: this folder holds {inside}. {what} need a folder of their own")


def free_name(folder: Path, picture: Path, names: set[Path]) -> Path:
    """The file for a picture's map or mask; pictures of one name in different folders get numbers."""
    stem = picture.stem[:50]  # a system allows 255 bytes
    name, number = folder / f"{stem}.png", 2
    while name in names:
        name, number = folder / f"{stem}-{number}.png", number + 1
    names.add(name)
    return name


def save(image: Any, path: Path) -> None:
    """Write a PNG under a temporary name, then rename it.

    Raises:
        BadFile: it cannot be written. No part of it remains.
    """
    content = io.BytesIO()
    image.save(content, "PNG")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.getvalue())
        os.replace(temporary, path)
    except OSError as error:
        raise BadFile(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def run(
    file: str,
    images: Sequence[str],
    *,
    top: int | None,
    as_json: bool,
    explained: Path | None,
    name: str,
    out: Path | None = None,
) -> int:
    """`predict` as a command.

    Returns:
        the exit status: 0; 1 if a picture could not be read; 2 for a bad model; 130 after Ctrl-C; 141 for a closed pipe.
    """
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return predict(file, images, top=top, as_json=as_json, explained=explained, out=out)
    except BadFile as error:
        complain(f"{name}: {error}")
        return 2
    except KeyboardInterrupt:
        complain(f"{name}: stopped")
        return 130
    except OSError as error:  # of print: all other files are looked after
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains at its end
        if isinstance(error, BrokenPipeError):
            return 141
        complain(f"{name}: the answers cannot be written: {error.strerror}")
        return 2


def main(words: Sequence[str] | None = None, name: str = "predict.py") -> int:
    """The command line of this file; `name` is its name in messages."""
    parser = argparse.ArgumentParser(
        name,
        description="Answer pictures with a model that distilens exported: a line per picture, with class and probability; for a "
        "segmentation with the classes and their shares of the pixels.",
        epilog="Exit status: 1 if a picture could not be read (the others are answered), 2 if the model cannot be used.",
    )
    parser.add_argument("file", metavar="FILE", help="the exported model, .onnx or .pte")
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="pictures, folders, and patterns such as 'photos/*.jpg'"
    )
    parser.add_argument(
        "--top",
        type=int,
        metavar="K",
        help="the number of classes per picture (1; in a segmentation all that occur)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per picture")
    parser.add_argument(
        "--explain", type=Path, metavar="DIR", help="write a picture of each answer's map into this folder"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="of a segmentation: write the mask of each picture into this folder"
    )
    given = parser.parse_args(words)
    return run(
        given.file,
        given.images,
        top=given.top,
        as_json=given.json,
        explained=given.explain,
        name=name,
        out=given.out,
    )


if __name__ == "__main__":
    sys.exit(main())
