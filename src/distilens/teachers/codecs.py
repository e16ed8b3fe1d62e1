"""Codecs: write answers as records of fixed size, and read them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distilens.foundation.devices import to_device
from distilens.foundation.errors import UserError
from distilens.teachers.needs import Need, levelled, unlevelled

Shape = tuple[int, ...]


class Codec:
    """The fields of a record, and the conversion of values. Values are tensors `[n ...]` on the host."""

    def fields(self, shape: Shape) -> list[tuple]:
        """The fields of a record for values of this shape."""
        raise NotImplementedError

    def encode(self, values: Tensor, records: np.ndarray) -> None:
        """Fill in the fields of records."""
        raise NotImplementedError

    def decode(self, records: np.ndarray, device: torch.device) -> Tensor:
        """The values in float32 on a device. Only the stored bytes are sent to the device."""
        raise NotImplementedError


class Half(Codec):
    """float16, scaled per record by a power of two that brings the largest value between 2^14 and 2^15.

    A power of two changes no digit. So values are rounded to 11 bits and do not overflow; a value of 2^-28 times the largest
    still has all 11 bits. Values of bfloat16, which has 8 bits, do not change at all.
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
    """uint8: 256 levels between the smallest and the largest value of each record, which are stored too."""

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
    """float32 without any change, for one number per image."""

    def fields(self, shape: Shape) -> list[tuple]:
        return [("values", "<f4", shape)]

    def encode(self, values: Tensor, records: np.ndarray) -> None:
        records["values"] = values.float().numpy()

    def decode(self, records: np.ndarray, device: torch.device) -> Tensor:
        return sent(records["values"], device)


class Largest(Codec):
    """The largest logits with their classes, and one value for all others: see `levelled`.

    In a dense task it does so at each place. There, values are bytes: an error of at most (largest - smallest value of the image)
    / 510 per logit.
    """

    def __init__(self, top: int, classes: int, *, dense: bool = False):
        self.top, self.classes = min(top, classes), classes
        self.values: Codec = Byte() if dense else Half()

    def fields(self, shape: Shape) -> list[tuple]:
        dense = len(shape) > 1
        number = "u1" if dense and self.classes <= 2**8 else "<u2" if self.classes <= 2**16 else "<u4"
        return [("classes", number, (self.top, *shape[1:])), *self.values.fields((self.top + 1, *shape[1:]))]

    def encode(self, values: Tensor, records: np.ndarray) -> None:
        largest, places, rest = levelled(values.float(), self.top)
        records["classes"] = places.numpy()
        self.values.encode(torch.cat([largest, rest[:, None]], 1), records)

    def decode(self, records: np.ndarray, device: torch.device) -> Tensor:
        values = self.values.decode(records, device)
        places = sent(records["classes"].astype(np.int32), device).long()
        return unlevelled(values[:, :-1], places, values[:, -1], self.classes)


def sent(column: np.ndarray, device: torch.device) -> Tensor:
    """Send a field of records to a device as a tensor, without waiting for it."""
    return to_device(column.copy(), device)


def codec_of(need: Need, shape: Shape, *, maps: str) -> Codec:
    """The codec for the answers to a need; `maps` is the type of maps, `float16` or `uint8`."""
    if need.kind == "scores":
        return Full()
    if need.kind == "maps" and maps == "uint8":
        return Byte()
    if need.top is not None:
        return Largest(need.top, shape[0], dense=len(shape) > 1)
    return Half()


def check_finite(values: Tensor, need: Need, index: np.ndarray) -> None:
    """Refuse to record NaN or infinite values.

    Raises:
        UserError: there are such values; the message names the images.
    """
    broken = ~values.isfinite().flatten(1).all(1) if values.ndim > 1 else ~values.isfinite()
    if broken.any():
        shown = ", ".join(map(str, index[broken.numpy()][:8].tolist()))
        raise UserError(
            f"the teacher's {need.name} have NaN or infinite values for the images with index {shown}: not recorded"
        )
