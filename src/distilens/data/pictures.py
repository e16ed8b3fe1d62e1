"""Convert pictures of any kind (tensors, arrays, Pillow images, files) to one pixel format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilens.foundation.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = (1, 3, 4)
SLACK = 1e-3
"""How far floats may lie outside [0, 1], through rounding and interpolation."""

IMAGE_KEYS = ("image", "images", "img", "pixel_values", "pixels", "x", "input")
"""The usual keys for the picture of an item."""


def is_array(given: Any) -> bool:
    """Whether something is an array or a tensor (a table with a shape is not)."""
    return hasattr(given, "ndim") and hasattr(given, "dtype") and not hasattr(given, "convert")


def is_picture(given: Any) -> bool:
    """Whether something is one picture: a Pillow image, or an array of two or three axes."""
    return hasattr(given, "convert") or (is_array(given) and given.ndim in (2, 3))


def holds_pictures(given: Any) -> bool:
    """Whether something is pictures, not a data set: a Pillow image, a path, an array of pictures, or a list of these."""
    if isinstance(given, list):
        return bool(given) and all(isinstance(one, Path) or is_picture(one) for one in given)
    return isinstance(given, Path) or hasattr(given, "convert") or isinstance(given, np.ndarray)


def as_array(given: Any) -> np.ndarray:
    """A NumPy array from a tensor on any device, a Pillow image, or nested lists."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) in ("torch.bfloat16", "torch.float16") else given
    return np.asarray(given)


def channels_last(values: np.ndarray, *, torch_like: bool, what: str) -> np.ndarray:
    """Move the channels to the end: `[… h w c]`, or `[… h w]` for grey pictures.

    If both the first and the last axis could be channels (three rows of pixels, for example), tensors have them first and
    arrays last.

    Args:
        values: one picture `[c h w]`, `[h w c]` or `[h w]`; many with a leading axis.

    Raises:
        UserError: neither the first nor the last axis can be channels.
    """
    first, last = values.shape[-3] in CHANNELS, values.shape[-1] in CHANNELS
    if first and (torch_like or not last):
        values = np.moveaxis(values, -3, -1)
    elif not last:
        raise UserError(
            f"{what} are {list(values.shape)}: expected 1, 3 or 4 channels, first ([3, height, width]) or last ([height, "
            "width, 3])"
        )
    return values[..., 0] if values.shape[-1] == 1 else values


def as_uint8(values: np.ndarray, low: float, high: float, what: str) -> np.ndarray:
    """Convert to pixels from 0 to 255.

    Args:
        values: numbers of any type.
        low, high: minimum and maximum of the whole set; they decide what the numbers mean.

    Raises:
        UserError: the numbers are not pixels (normalised ones, for example).
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{what} hold numbers that are NaN or infinite: expected pixels from 0 to 1, or from 0 to 255")
    if values.dtype.kind == "f" and low >= -SLACK and high <= 1 + SLACK:
        return (values.clip(0, 1) * 255).round().astype(np.uint8)
    if values.dtype.kind in "iuf" and low >= 0 and high <= 255:
        return np.round(values).astype(np.uint8)
    normalised = low < 0 and values.dtype.kind == "f"
    remedy = (
        "They look normalised: remove Normalize from the transform. A Model normalises by itself, with its mean= and std="
        if normalised
        else "Scale them"
    )
    raise UserError(
        f"{what} hold numbers from {low:g} to {high:g}: expected pixels from 0 to 1, or from 0 to 255. {remedy}"
    )


def picture_of(item: Any) -> Any:
    """The picture in a dictionary or a tuple; any other item is the picture itself."""
    if isinstance(item, Mapping):
        key = next((name for name in IMAGE_KEYS if name in item), None)
        if key is None:
            raise UserError(
                f"an item with the keys {', '.join(map(str, item))} has no picture under a usual name: {', '.join(IMAGE_KEYS)}"
            )
        return item[key]
    return item[0] if isinstance(item, tuple) and item and not is_picture(item) else item


def as_images(given: Any) -> Tensor:
    """Convert to pictures `[b 3 h w]` in [0, 1], from tensors, arrays, Pillow images, paths, or a list of these.

    Raises:
        UserError: they cannot be converted; the message says why.
    """
    import torch

    if isinstance(given, torch.Tensor) and given.ndim == 4 and given.shape[1] in (1, 3) and is_in_unit_range(given):
        return given  # unchanged: no rounding, on its device
    if isinstance(given, (str, Path)) or is_picture(given):
        given = [given]
    if isinstance(given, Sequence):
        if not given:
            raise UserError("there is no picture: the list is empty")
        pictures = [as_images(one) if is_array(one) else as_images(open_picture(one)[None]) for one in map(unit, given)]
        shapes = {tuple(picture.shape[-2:]) for picture in pictures}
        if len(shapes) > 1:
            raise UserError(
                f"the pictures have {len(shapes)} sizes, such as {sorted(shapes)[0]} and {sorted(shapes)[-1]}: give each alone"
            )
        return torch.cat(pictures)
    values = as_array(given)
    if values.ndim not in (3, 4):
        raise UserError(f"pictures are [b 3 h w], [b h w 3] or a list; given {list(values.shape)}")
    torch_like = isinstance(given, torch.Tensor)
    values = channels_last(values, torch_like=torch_like, what="the pictures") if values.ndim == 4 else values
    if values.ndim == 4 and values.shape[-1] == 4:
        raise UserError("the pictures have 4 channels: expected 3 (leave the transparency out), or 1")
    values = values[..., None].repeat(3, -1) if values.ndim == 3 else values
    device = given.device if torch_like else None
    first = np.ascontiguousarray(np.moveaxis(values, -1, 1))
    if values.dtype.kind == "f" and is_in_unit_range(values):
        return torch.from_numpy(first).float().to(device)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    return torch.from_numpy(as_uint8(first, low, high, "the pictures")).to(device).float() / 255


def unit(one: Any) -> Any:
    """Add a batch axis to a single picture that is a tensor or an array."""
    return one[None] if is_array(one) and one.ndim in (2, 3) else one


def open_picture(given: Any) -> np.ndarray:
    """A Pillow image or a file as `[h w 3]`, upright.

    Raises:
        UserError: the file does not exist, or is not a picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if hasattr(given, "convert"):
        return np.asarray(ImageOps.exif_transpose(given).convert("RGB"))
    if not isinstance(given, (str, Path)):
        raise UserError(f"a picture is a tensor, an array, a Pillow image or a path; given a {type(given).__name__}")
    try:
        with Image.open(Path(given).expanduser()) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{given} is not a picture that Pillow can read") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{given} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def is_in_unit_range(values: Any) -> bool:
    """Whether the values are floats in [0, 1], up to rounding."""
    if not (values.is_floating_point() if hasattr(values, "is_floating_point") else values.dtype.kind == "f"):
        return False
    return bool(float(values.min()) >= -SLACK and float(values.max()) <= 1 + SLACK) if len(values) else True
