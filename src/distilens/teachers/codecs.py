"""How answers are written as records of fixed size, and read back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distilens.errors import UserError
from distilens.processor import to_device
from distilens.teachers.needs import Need, levelled, unlevelled

Shape = tuple[int, ...]


class Codec:
    """What a record holds, and how values become records. Values are tensors `[n ...]` on the host."""

    def fields(self, shape: Shape) -> list[tuple]:
        """The fields of a record of values of some shape."""
        raise NotImplementedError

    def encode(self, values: Tensor, records: np.ndarray) -> None:
        """Fill in the fields of records."""
        raise NotImplementedError

    def decode(self, records: np.ndarray, device: torch.device) -> Tensor:
        """The values again, in float32, on a device: what is sent there is what is stored."""
        raise NotImplementedError


class Half(Codec):
    """float16, with a power of two for each record that brings its largest value to between 2^14 and 2^15.

    A power of two changes no digit, so values are rounded to 11 bits and neither overflow nor vanish: what is 2^-28 of the
    largest still has all of them. Values of bfloat16, which has 8, come back as they were.
    """

    def fields(self, shape: Shape) -> list[tuple]:
        return [("scale", "<f4"), ("values", "<f2", shape)]

    def encode(self, values: Tensor, records: np.ndarray) -> None:
        flat = values.float().flatten(1)
        power = 15 - torch.frexp(flat.abs().amax(1)).exponent.clamp(-100, 128)
        records["scale"] = torch.ldexp(torch.ones(len(flat)), -power).numpy()
        scaled = torch.ldexp(flat, power[:, None])
        records["values"] = scaled.half().view(values.shape).numpy()

    def decode(self, records: np.ndarray, device: torch.device) -> Tensor:
        values = sent(records["values"], device).float()
        return values * sent(records["scale"], device).view(-1, *[1] * (values.ndim - 1))


class Byte(Codec):
    """uint8 between each record's smallest and largest value, which are kept: 256 levels."""

    def fields(self, shape: Shape) -> list[tuple]:
        return [("low", "<f4"), ("high", "<f4"), ("values", "u1", shape)]

    def encode(self, values: Tensor, records: np.ndarray) -> None:
        flat = values.float().flatten(1)
        low, high = flat.amin(1), flat.amax(1)
        levels = (flat - low[:, None]) / (high - low).clamp(min=1e-30)[:, None] * 255
        records["low"], records["high"] = low.numpy(), high.numpy()
        records["values"] = levels.round().clamp(0, 255).to(torch.uint8).view(values.shape).numpy()

    def decode(self, records: np.ndarray, device: torch.device) -> Tensor:
        levels = sent(records["values"], device).float() / 255
        low, high = (sent(records[end], device).view(-1, *[1] * (levels.ndim - 1)) for end in ("low", "high"))
        return low + (high - low) * levels


class Full(Codec):
    """float32, as it is: one number an image."""

    def fields(self, shape: Shape) -> list[tuple]:
        return [("values", "<f4", shape)]

    def encode(self, values: Tensor, records: np.ndarray) -> None:
        records["values"] = values.float().numpy()

    def decode(self, records: np.ndarray, device: torch.device) -> Tensor:
        return sent(records["values"], device)


class Largest(Codec):
    """The largest logits with their classes, and the level of the others: see `levelled`."""

    def __init__(self, top: int, classes: int):
        self.top, self.classes, self.half = min(top, classes), classes, Half()

    def fields(self, shape: Shape) -> list[tuple]:
        number = "<u2" if self.classes <= 2**16 else "<u4"
        return [("classes", number, (self.top,)), *self.half.fields((self.top + 1,))]

    def encode(self, values: Tensor, records: np.ndarray) -> None:
        largest, places, rest = levelled(values.float(), self.top)
        records["classes"] = places.numpy()
        self.half.encode(torch.cat([largest, rest[:, None]], 1), records)

    def decode(self, records: np.ndarray, device: torch.device) -> Tensor:
        values = self.half.decode(records, device)
        places = sent(records["classes"].astype(np.int32), device).long()
        return unlevelled(values[:, :-1], places, values[:, -1], self.classes)


def sent(column: np.ndarray, device: torch.device) -> Tensor:
    """A field of records as a tensor on a device, without waiting for it."""
    return to_device(column.copy(), device)


def codec_of(need: Need, shape: Shape, *, maps: str) -> Codec:
    """How the answers to a need are written; `maps` says whether maps are `float16` or `uint8`."""
    if need.kind == "scores":
        return Full()
    if need.kind == "maps" and maps == "uint8":
        return Byte()
    if need.top is not None:
        return Largest(need.top, shape[0])
    return Half()


def check_finite(values: Tensor, need: Need, index: np.ndarray) -> None:
    """Nothing that is no number is recorded.

    Raises:
        UserError: with the images.
    """
    broken = ~values.isfinite().flatten(1).all(1) if values.ndim > 1 else ~values.isfinite()
    if broken.any():
        shown = ", ".join(map(str, index[broken.numpy()][:8].tolist()))
        raise UserError(
            f"the teacher's {need.name} have NaN or infinite values for the images with index {shown}: not recorded"
        )
