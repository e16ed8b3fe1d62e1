"""A second device for machines that have none: it counts what a GPU would be waited for, and refuses what is left on the host.

`SecondDevice()` is a context. Within it the device `meta` holds real numbers: its tensors are computed on the CPU, but
torch takes them for those of another device. So a whole step can be trained there, and each place is noted where a real GPU
would have to be waited for: a number read back (`.item()`), a shape that depends on values (`nonzero`, a boolean index), a
copy from or to the host that is not `non_blocking`. An operation on tensors of both devices is an error, as it is on a GPU.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"
TENSOR = torch.tensor
READS_BACK = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "unique2",
    "_unique2",
    "bincount",
}
TAKES_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class OnDevice(Tensor):
    """A tensor of the second device: its numbers are in `here`, on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor):
        made = Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=DEVICE, requires_grad=here.requires_grad,
        )  # fmt: skip
        made.here = here
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=options.get("dtype", self.dtype), device=DEVICE)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a tensor of the second device, outside of SecondDevice()")


class SecondDevice(TorchDispatchMode):
    """See above. `waits` counts where the host would wait, by operation and line of distilens."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[str] = Counter()

    def tensor(self, data: Any, *, device: Any = None, **options: Any) -> Tensor:
        """`torch.tensor`, which makes numbers on the host and waits for the device to take them; for `meta` torch makes none."""
        made = TENSOR(data, **options)
        return made.to(device) if device is not None else made

    def note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "distilens/" in frame.filename]
        where = f"{ours[-1].filename.rpartition('distilens/')[2]}: {ours[-1].line}" if ours else "outside"
        self.waits[f"{what} in {where}"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        there = [value for value in tensors if isinstance(value, OnDevice)]
        asked = kwargs.get("device")
        target = torch.device(asked).type if asked is not None else None
        if not there and target != DEVICE:
            return func(*args, **kwargs)
        if asked is not None:
            kwargs["device"] = "cpu"
        if name == "copy_":
            self.check_copy(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        elif name == "_to_copy" and target is not None and (target == DEVICE) != bool(there):
            if not kwargs.get("non_blocking"):
                self.note("copy to the device" if target == DEVICE else "copy to the host")
        elif name in TAKES_INDICES:
            self.check_indices(args)
        else:
            if name in READS_BACK:
                self.note(name)
            beside = [value for value in tensors if not isinstance(value, OnDevice) and value.ndim]
            if there and beside and name != "_to_copy":
                raise RuntimeError(f"{name}: tensors of both devices: {[tuple(value.shape) for value in beside]}")
        out = func(*tree_map(inner, args), **tree_map(inner, kwargs))
        if name in ("_local_scalar_dense", "equal", "is_nonzero") or target == "cpu":
            return out
        wrapped = tree_map(lambda value: OnDevice(value) if isinstance(value, Tensor) else value, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped

    def check_copy(self, to: Tensor, source: Tensor, non_blocking: bool) -> None:
        if isinstance(to, OnDevice) != isinstance(source, OnDevice) and not non_blocking:
            self.note("copy to the device" if isinstance(to, OnDevice) else "copy to the host")

    def check_indices(self, args: tuple) -> None:
        for index in args[1]:
            if index is not None and index.dtype == torch.bool:
                self.note("boolean index")
            elif index is not None and not isinstance(index, OnDevice):
                self.note("index on the host")


def inner(value: Any) -> Any:
    return value.here if isinstance(value, OnDevice) else value


@contextlib.contextmanager
def second_device() -> Iterator[SecondDevice]:
    """The mode, with what torch would ask of a real accelerator taken for done."""
    with pytest.MonkeyPatch.context() as patch, SecondDevice() as mode:
        patch.setattr(Tensor, "pin_memory", lambda self, device=None: self)
        patch.setattr(torch, "tensor", mode.tensor)
        patch.setattr(torch, "is_autocast_enabled", lambda device="cpu": False)  # torch knows none for `meta`
        patch.setattr(torch, "autocast", lambda device, *arguments, **options: contextlib.nullcontext())
        yield mode
