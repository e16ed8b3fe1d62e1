"""A panel of maps: one row per image, with one map per model or per pair of models."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distilens.report import class_pictures, pictures, table
from distilens.report.cells import percent
from distilens.report.names import plain_name
from distilens.report.rendering import missing

# The page stays below 10 MB: charts and text are small, and the panels share this budget for pictures evenly.
PICTURE_BYTES = 8_000_000


def panel(path: Path, classes: list[str], budget: int, command: str) -> dict[str, Any]:
    """The rows of one file of maps, limited by `budget` bytes of pictures."""
    name = path.name.removesuffix(".npz")
    try:
        # Opened here, because numpy does not close a file that it fails to read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        return panel_of(name, arrays, classes, budget)
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        return {"name": name, "missing": missing(f"{path.name} cannot be read: {error}", command)}


def panel_of(name: str, arrays: Mapping[str, np.ndarray], classes: list[str], budget: int) -> dict[str, Any]:
    """The rows of one explainer or one level; the roles are those of a run, unless the arrays name others."""
    named = [str(role) for role in arrays["roles"]] if "roles" in arrays else table.MODELS
    roles = [role for role in named if f"maps_{role}" in arrays]
    order, disagreeing = disagreement(arrays, roles)
    # CAMs count by their positive part; gradients and their integrals have a sign, and count by size.
    signed = bool(arrays["signed"]) if "signed" in arrays else "cam" not in name.lower()
    dense = "regions" in arrays  # a segmentation
    compared = len(roles) > 1 and "answer" not in arrays and not dense
    rows, spent = [], 0
    for at in order:
        row = map_row(arrays, at, roles, classes, signed=signed, differs=at in disagreeing)
        spent += row["bytes"]
        if rows and spent > budget:
            break
        rows.append(row)
    return {
        "name": plain_name(name),
        "signed": signed,
        "roles": roles,
        "compared": compared,
        "count": len(order),
        "disagreeing": len(disagreeing),
        "groups": [
            ("The models disagree", [row for row in rows if row["differs"]]),
            (
                "The models agree" if compared else "The worst images of the student first" if dense else "Images",
                [row for row in rows if not row["differs"]],
            ),
        ],
        "shown": len(rows),
        "legend": class_pictures.legend(classes, legend_of(arrays, roles)) if dense else [],
        "has_masks": "masks" in arrays,
    }


def legend_of(arrays: Mapping[str, np.ndarray], roles: list[str]) -> np.ndarray:
    """All classes that a panel of a segmentation shows."""
    return np.concatenate([arrays["labels"].ravel(), *(arrays[f"answers_{role}"].ravel() for role in roles)])


def disagreement(arrays: Mapping[str, np.ndarray], roles: list[str]) -> tuple[list[int], set[int]]:
    """The order of the rows, and the rows that the models predict differently: these come first, else the stored order."""
    count = len(arrays["index"])
    predictions = [arrays[f"prediction_{role}"] for role in roles if f"prediction_{role}" in arrays]
    differs = {at for at in range(count) if len({int(prediction[at]) for prediction in predictions}) > 1}
    return sorted(range(count), key=lambda at: at not in differs), differs


def map_row(
    arrays: Mapping[str, np.ndarray], at: int, roles: list[str], classes: list[str], *, signed: bool, differs: bool
) -> dict[str, Any]:
    """One image: its label and file, its mask, and each model's map and prediction."""
    image = np.ascontiguousarray(arrays["images"][at], dtype=np.uint8)
    if image.shape[-1] == 1:
        image = image.repeat(3, axis=-1)
    in_words = "answer" in arrays  # of a task without classes
    dense = "regions" in arrays
    label = int(arrays["labels"][at]) if "labels" in arrays and not in_words and not dense else -1
    target = int(arrays["targets"][at]) if "targets" in arrays and not in_words else -1
    index = int(arrays["index"][at])
    named_file = str(arrays["names"][at]) if "names" in arrays else ""
    mask = arrays["regions"][at] if dense else arrays["masks"][at] if "masks" in arrays else None
    has_mask = mask is not None and bool(np.any(mask))
    row: dict[str, Any] = {
        "index": index,
        "title": named_file or f"Image {index}",
        "called": named_file or f"image {index}",
        "kind": "target" if in_words else "classes" if dense else "label",
        "label": str(arrays["answer"][at])
        if in_words
        else class_pictures.names_in(arrays["labels"][at], classes)
        if dense
        else class_name(label, classes),
        "target": class_name(target, classes),
        "differs": differs,
        "image": pictures.image_uri(image),
        "mask": pictures.mask_uri(image, mask) if has_mask and mask is not None and not dense else None,
        "dense": class_pictures.figures(arrays, at, roles, classes) if dense else {},
        "models": [],
    }
    judges = answering(arrays)
    for role in roles:
        values = pictures.normalise_map(arrays[f"maps_{role}"][at], signed=signed)
        drawable = not isinstance(values, str)
        prediction, confidence = arrays.get(f"prediction_{role}"), arrays.get(f"confidence_{role}")
        predicted = int(prediction[at]) if prediction is not None else -1
        row["models"].append(
            {
                "role": role,
                "judged": judges.get(role, ""),
                "picture": pictures.overlay_uri(image, values, mask) if drawable else None,
                "place": pictures.strongest_place(values) if drawable else None,
                "problem": values if not drawable else None,
                "prediction": str(arrays[f"answer_{role}"][at]) if in_words else class_name(predicted, classes),
                "confidence": percent(float(confidence[at])) if confidence is not None else None,
                "right": predicted == label if label >= 0 and predicted >= 0 else None,
            }
        )
    shown = [*row["models"], *(one for line in row["dense"].values() for one in line)]
    uris = [row["image"], row["mask"], *(one["picture"] for one in shown)]
    return row | {"bytes": sum(len(uri) for uri in uris if uri)}


def answering(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """For maps of pairs of models: the model whose prediction is shown below the map, by the pair's name."""
    if "roles" not in arrays:
        return {}
    if "answers_of" in arrays:
        return dict(zip(map(str, arrays["roles"]), map(str, arrays["answers_of"]), strict=True))
    return {"distilled": "student", "residual": "base", "missed": "teacher"}


def class_name(number: int, classes: list[str]) -> str | None:
    if number < 0:
        return None
    return str(classes[number]) if number < len(classes) else f"class {number}"
