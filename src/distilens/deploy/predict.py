"""Answer pictures with an exported model. This file works alone: it needs NumPy, Pillow and onnxruntime, and never imports torch.

    python predict.py student.onnx pictures/ photo.jpg [--top 3] [--json] [--explain maps/]

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
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
GROUNDS = {"white": (255, 255, 255, 255), "black": (0, 0, 0, 255), "grey": (128, 128, 128, 255)}
PROBES = 256
"""The largest number of images per call while a map is made."""


class BadFile(Exception):  # noqa: N818  # the file is bad
    """A model that cannot be used; the message says why."""


class BadPicture(Exception):  # noqa: N818
    """A picture that cannot be read; the message says why."""


# ------------------------------------------------------------------------------------------------------- the exported file


class OnnxFile:
    """An ONNX file in ONNX Runtime, on the CPU.

    Nothing of the file is executed but ONNX's own operators, and no weights are read from outside its folder.

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

        path = Path(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads:
            options.intra_op_num_threads = threads
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        content = read_file(path)
        check_external(content, path)
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise BadFile(explain_session(path, error)) from None
        self.about = read_about(self.session, path)
        first = self.session.get_inputs()[0]
        self.input = first.name
        self.batch: int | None = first.shape[0] if isinstance(first.shape[0], int) else None

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return self.session.run(None, {self.input: images})


class PteFile:
    """An ExecuTorch file in ExecuTorch's Python runtime. That runtime loads torch by itself; phones need only the C++ runtime.

    Raises:
        BadFile: it cannot be used.
    """

    batch = 1

    def __init__(self, path: str | Path):
        if importlib.util.find_spec("executorch") is None:
            raise BadFile("executorch is not installed: pip install executorch")
        read_file(Path(path))
        with warnings.catch_warnings(), quiet_stderr():
            warnings.simplefilter("ignore")
            from executorch.runtime import Runtime

            try:
                self.program = Runtime.get().load_program(Path(path))
                self.forward = self.program.load_method("forward")
                about = json.loads(self.program.load_method(KEY).execute([])[0])
            except Exception as error:
                text = str(error).strip().splitlines() or [type(error).__name__]
                raise BadFile(
                    f"{path} is not an ExecuTorch file of distilens export, or it is damaged: {text[0]}"
                ) from None
        self.about: dict[str, Any] = about

    def __call__(self, images: np.ndarray) -> Sequence[np.ndarray]:
        import torch

        return [output.numpy().copy() for output in self.forward.execute([torch.from_numpy(images)])]


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
    for name in external_files(content):
        inside = not os.path.isabs(name) and (path.parent / name).resolve().is_relative_to(path.parent.resolve())
        if not inside:
            raise BadFile(f"{path} wants to read {name}, which is outside its folder: such a file is refused")


def external_files(content: bytes) -> Iterator[str]:
    """The places of external weights in an ONNX file: the value of every entry `location` (key and value are fields 1 and 2)."""
    mark, start = b"\x0a\x08location\x12", 0
    while (found := content.find(mark, start)) >= 0:
        length, at = read_varint(content, found + len(mark))
        yield content[at : at + length].decode("utf-8", "replace")
        start = at


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf's variable length, and the place behind it."""
    value = shift = 0
    while at < len(content):
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            break
    return value, at


def explain_session(path: Path, error: Exception) -> str:
    """Why ONNX Runtime does not open a file."""
    text = str(error).strip().splitlines()[0]
    if "is not a registered function/op" in text or "No opset import for domain" in text or "not a registered" in text:
        return f"{path} uses an operator that is not of ONNX itself, which is refused: {text}"
    if "Protobuf parsing failed" in text or "INVALID_PROTOBUF" in text:
        return f"{path} is not an ONNX file, or it is damaged"
    return f"{path} cannot be opened by ONNX Runtime: {text}"


def read_about(session: Any, path: Path) -> dict[str, Any]:
    """The metadata that an export wrote into the file."""
    found = session.get_modelmeta().custom_metadata_map.get(KEY)
    try:
        about = json.loads(found or "")
    except ValueError:
        about = None
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise BadFile(
            f"{path} was not written by distilens export, so its classes and its pixels are unknown. Export it again: "
            "distilens export RUN"
        )
    first, names = session.get_inputs(), [output.name for output in session.get_outputs()]
    if len(first) != 1 or len(first[0].shape) != 4 or names != about.get("outputs"):
        raise BadFile(f"{path} does not fit its own description: inputs or outputs are others than it says")
    return about


def open_model(path: str | Path, threads: int | None = None) -> Any:
    """An exported file in the runtime of its format.

    Raises:
        BadFile: there is no such file, or it cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted([*path.glob("*.onnx"), *path.glob("*.pte")])
        raise BadFile(
            f"{path} is a folder. Give the file: {inside[0]}"
            if inside
            else f"{path} is a folder, not an exported model"
        )
    if not path.exists():
        raise BadFile(f"there is no file {path}")
    if path.suffix == ".pte":
        return PteFile(path)
    if path.suffix != ".onnx":
        raise BadFile(f"{path} is neither an .onnx nor a .pte file: only these are predicted with")
    return OnnxFile(path, threads)


# --------------------------------------------------------------------------------------------------------------- pictures


def find_pictures(given: Iterable[str]) -> Iterator[Path]:
    """The files of the given files, folders (with their folders) and patterns such as `*.jpg`."""
    for name in given:
        path = Path(name)
        if path.is_dir():
            yield from (found for found in sorted(path.rglob("*")) if found.suffix.lower() in SUFFIXES)
        elif not path.exists() and glob.has_magic(name):
            yield from map(Path, sorted(glob.glob(name, recursive=True)))
        else:
            yield path


def read_picture(path: Path, about: Mapping[str, Any]) -> np.ndarray:
    """A picture as the network expects it: uint8 `[h w 3]`, upright, scaled to cover the input, its middle cut out.

    Raises:
        BadPicture: it cannot be read.
    """
    from PIL import Image, ImageOps

    height, width = about["input"]["size"]
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * max(height, width), 2 * max(height, width)))
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(fit(as_rgb(image, about.get("pixels") or {}), height, width))
    except FileNotFoundError:
        raise BadPicture("there is no such file") from None
    except Exception as error:  # on broken files Pillow's readers raise errors of any kind
        text = "it is not a picture" if type(error).__name__ == "UnidentifiedImageError" else str(error).rstrip(".")
        raise BadPicture(text or type(error).__name__) from None


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


def answer(model: Any, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name for pictures uint8 `[b h w 3]`."""
    images = as_input(pictures, model.about)
    size = model.batch or len(images)
    parts = [model(images[start : start + size]) for start in range(0, len(images), size)]
    return {
        name: np.concatenate(values)
        for name, values in zip(model.about["outputs"], zip(*parts, strict=True), strict=True)
    }


def occlusion(model: Any, picture: np.ndarray, target: int) -> np.ndarray:
    """How much the class's logit falls when a window hides part of the picture, `[h w]`; the explainer `occlusion`.

    The window is a square of a quarter of the shorter side. It moves by half its side. Hidden pixels get the mean colour.
    """
    height, width = picture.shape[:2]
    side = max(1, min(height, width) // 4)
    stride = max(1, side // 2)
    rows, columns = (range(math.ceil(max(0, length - side) / stride) + 1) for length in (height, width))
    windows = [(row * stride, column * stride) for row in rows for column in columns]
    mean = np.asarray(model.about["input"].get("mean") or 0.5, dtype=np.float32)
    fill = (mean * 255).round().clip(0, 255).astype(np.uint8)
    before = answer(model, picture[None])["logits"][0, target]
    total, covered = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for start in range(0, len(windows), PROBES):
        part = windows[start : start + PROBES]
        hidden = np.repeat(picture[None], len(part), 0)
        for image, (top, left) in zip(hidden, part, strict=True):
            image[top : top + side, left : left + side] = fill
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


def explain(model: Any, picture: np.ndarray, outputs: Mapping[str, np.ndarray], target: int) -> np.ndarray:
    """The class's map of one picture: the one in the file's outputs if there is one, else by occlusion."""
    return outputs["maps"][0, target] if "maps" in outputs else occlusion(model, picture, target)


def describe(about: Mapping[str, Any], outputs: Mapping[str, np.ndarray], top: int) -> list[tuple[str, float]]:
    """The most probable classes of one picture, each with its probability; the plain numbers for other tasks."""
    if "probabilities" not in outputs:
        return [(f"output {place}", float(value)) for place, value in enumerate(outputs["logits"][0].ravel()[:top])]
    probabilities = outputs["probabilities"][0]
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [(about["classes"][place], float(probabilities[place])) for place in best]


def predict(
    file: str | Path, images: Sequence[str], *, top: int = 1, as_json: bool = False, explained: Path | None = None
) -> int:
    """Print the answer for each picture. Bad pictures are named on stderr, and the others go on.

    Args:
        file: the exported model.
        images: files, folders and patterns.
        top: the number of classes per picture.
        as_json: one JSON object per picture.
        explained: the folder for pictures of the maps.

    Returns:
        the exit status: 0, or 1 if a picture could not be read.

    Raises:
        BadFile: the model cannot be used.
    """
    model = open_model(file)
    pictures = list(find_pictures(images))
    if not pictures:
        raise BadFile(f"there is no picture in {', '.join(images)}")
    if explained:
        explained.mkdir(parents=True, exist_ok=True)
    failed = False
    for path in pictures:
        try:
            picture = read_picture(path, model.about)
        except BadPicture as error:
            failed = True
            print(f"{path}: {error}", file=sys.stderr)
            if as_json:
                print(json.dumps({"file": str(path), "error": str(error)}, ensure_ascii=False), flush=True)
            continue
        outputs = answer(model, picture[None])
        best = describe(model.about, outputs, top)
        map_file = None
        if explained:
            map_file = free_name(explained, path)
            target = int(outputs["logits"][0].argmax())
            save(overlay(picture, explain(model, picture, outputs, target)), map_file)
        print_answer(path, best, as_json, map_file)
    return int(failed)


def print_answer(path: Path, best: Sequence[tuple[str, float]], as_json: bool, map_file: Path | None) -> None:
    """One line for a picture."""
    if as_json:
        entry: dict[str, Any] = {
            "file": str(path),
            "top": [{"class": name, "probability": share} for name, share in best],
        }
        print(json.dumps({**entry, **({"map": str(map_file)} if map_file else {})}, ensure_ascii=False), flush=True)
    else:
        print(f"{path}\t" + "\t".join(f"{name} {share:.3f}" for name, share in best), flush=True)


def free_name(folder: Path, picture: Path) -> Path:
    """The file for a picture's map; pictures of one name in different folders get numbers."""
    name, number = folder / f"{picture.stem}.png", 2
    while name in USED:
        name, number = folder / f"{picture.stem}-{number}.png", number + 1
    USED.add(name)
    return name


USED: set[Path] = set()


def save(image: Any, path: Path) -> None:
    """Write a PNG under a temporary name, then rename it."""
    content = io.BytesIO()
    image.save(content, "PNG")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(words: Sequence[str] | None = None) -> int:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description="Answer pictures with a model that distilens exported.")
    parser.add_argument("file", help="the exported model, .onnx or .pte")
    parser.add_argument("images", nargs="+", help="pictures, folders, patterns")
    parser.add_argument("--top", type=int, default=1, help="the number of classes per picture")
    parser.add_argument("--json", action="store_true", help="one JSON object per picture")
    parser.add_argument(
        "--explain", type=Path, metavar="DIR", help="write a picture of each answer's map into this folder"
    )
    given = parser.parse_args(words)
    try:
        return predict(given.file, given.images, top=given.top, as_json=given.json, explained=given.explain)
    except BadFile as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


if __name__ == "__main__":
    sys.exit(main())
