"""What to explain, in words: `top1`, `label`, `class:car`, `box:8,8,24,24`, `point:12,30`.

    words ──► Wanted (checked without a model) ──► an aim: a class per image; in a dense task the class at each explained place

An aim is found once, on the untouched images. It does not change while an explainer or a measure changes the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from distilens.foundation.errors import UserError, nearest, shortened
from distilens.tasks import NOWHERE, Task
from distilens.tasks.segmentation import on_grid

FORMS = "top1, label, class:NAME, box:x0,y0,x1,y1 or point:x,y"
"""The words for what is explained; x goes to the right, y down, in pixels of the images as the model gets them."""


@dataclass(frozen=True)
class Wanted:
    """What a user wants to have explained.

    Attributes:
        kind: `top1`, `label`, `class`, `box` or `point`.
        name: the name or the number of the class, of kind `class`.
        box: `x0, y0, x1, y1`: the pixels with `x0 <= x < x1` and `y0 <= y < y1`. A point is a box of one pixel.
    """

    kind: str
    name: str = ""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)

    @classmethod
    def read(cls, words: str) -> Wanted:
        """Raises a `UserError` for words of another form."""
        kind, colon, value = words.partition(":")
        if kind in ("top1", "label") and not colon:
            return cls(kind)
        if kind == "class" and value:
            return cls(kind, name=value)
        numbers = tuple(int(part) for part in value.split(",") if part.strip().isdecimal())
        if kind == "point" and len(numbers) == 2 == value.count(",") + 1:
            x, y = numbers
            return cls(kind, box=(x, y, x + 1, y + 1))
        if kind == "box" and len(numbers) == 4 == value.count(",") + 1:
            left, top, right, bottom = numbers
            if left >= right or top >= bottom:
                raise UserError(
                    f"a box goes from x0,y0 to x1,y1 with x0 < x1 and y0 < y1, such as box:8,8,24,24; given {words!r}"
                )
            return cls(kind, box=(left, top, right, bottom))
        raise UserError(f"what to explain is {FORMS}, with whole numbers of at least 0; given {words!r}")

    def describe(self, task: Task) -> str:
        """What is explained, as it stands on a page."""
        if not task.dense:
            return {"top1": "the model's top class", "label": "the label"}.get(self.kind, f"the class {self.name}")
        return {
            "top1": "the places where the model predicts its largest class of the image",
            "label": "the places of the largest class of the target",
            "class": f"the places where the model predicts {self.name}",
            "box": f"the places where the model predicts its largest class of the box {self.span}",
            "point": f"the predicted class at the pixel {self.span}",
        }[self.kind]

    @property
    def span(self) -> str:
        """The box in words: `x 8 to 23, y 4 to 11`; a point: `x 8, y 4`."""
        left, top, right, bottom = self.box
        if self.kind == "point":
            return f"x {left}, y {top}"
        return f"x {left} to {right - 1}, y {top} to {bottom - 1}"


def aim_of(
    wanted: Wanted,
    outputs: Float[Tensor, "b k ..."],
    size: tuple[int, int],
    task: Task,
    targets: Shaped[Tensor, "b ..."] | None = None,
) -> Int[Tensor, "b ..."]:
    """The aim that is wanted: in classification a class per image, in a dense task the class at each explained place.

    An image of a dense task that has no such place gets an aim of -1 everywhere.

    Args:
        outputs: of the untouched images.
        size: height and width of the images.
        targets: the labels, for `label`.

    Raises:
        UserError: an unknown class, a place outside the image, a box or a point for a task that is not dense, no labels.
    """
    if wanted.kind == "top1":
        return task.explained(outputs)
    if wanted.kind == "label":
        if targets is None:
            raise UserError("label explains the images' labels, but there are none here: take top1 or class:NAME")
        return label_aim(targets, task).to(outputs.device) if task.dense else targets.to(outputs.device)
    if wanted.kind == "class":
        number = class_number(wanted.name, task.classes)
        return task.aim(outputs, torch.full((len(outputs),), number, device=outputs.device))
    if not task.dense:
        raise UserError(
            f"a {wanted.kind} needs an answer for each place of an image, but a {task.name or 'classification'} answers once per "
            "image: take class:NAME"
        )
    return box_aim(outputs, size, task, wanted)


def box_aim(
    outputs: Float[Tensor, "b k i j"], size: tuple[int, int], task: Task, wanted: Wanted
) -> Int[Tensor, "b h w"]:
    """The class that is predicted at most pixels of the box, at the pixels of the box where it is predicted."""
    left, top, right, bottom = wanted.box
    if right > size[1] or bottom > size[0]:
        raise UserError(
            f"the {wanted.kind} lies outside the images, which are {size[1]} pixels wide and {size[0]} high (as the model gets "
            f"them): x goes from 0 to {size[1] - 1}, y from 0 to {size[0] - 1}; given {wanted.span}"
        )
    outputs = on_grid(outputs, outputs.new_empty(size))
    inside = torch.zeros(size, dtype=torch.bool, device=outputs.device)
    inside[top:bottom, left:right] = True
    within = task.explained(outputs[..., top:bottom, left:right]).flatten(1).amax(1)
    return task.aim(outputs, within).masked_fill(~inside, NOWHERE)


def label_aim(targets: Shaped[Tensor, "b h w"], task: Task) -> Int[Tensor, "b h w"]:
    """The class with most places in each target, at these places; -1 everywhere for a target without a class."""
    valid, numbers = task.valid(targets), targets.long()
    counts = torch.stack([((numbers == number) & valid).flatten(1).sum(1) for number in range(task.outputs)], 1)
    largest = counts.argmax(1)[:, None, None]
    return torch.where((numbers == largest) & valid, largest, NOWHERE)


def masked_aim(mask: Bool[Tensor, "b h w"], classes: Int[Tensor, " b"]) -> Int[Tensor, "b h w"]:
    """A class per image at the places of a mask."""
    return torch.where(mask, classes[:, None, None].to(mask.device), NOWHERE)


def class_numbers(given: int | str | Sequence[int | str] | Tensor, classes: Sequence[str], count: int) -> Tensor:
    """Classes by name or number as numbers, one per image.

    Raises:
        UserError: there is no such class, or another number of classes than images.
    """
    if isinstance(given, str):
        given = class_number(given, classes)
    elif isinstance(given, Sequence):
        given = [class_number(one, classes) if isinstance(one, str) else one for one in given]
    numbers = torch.as_tensor(given)
    if numbers.ndim and len(numbers) != count:
        raise UserError(f"there must be one target per image: {count} images, targets of shape {list(numbers.shape)}")
    return numbers.expand(count) if numbers.ndim == 0 else numbers


def class_number(name: str, classes: Sequence[str]) -> int:
    """The number of a class by its name, else by its number in digits.

    Raises:
        UserError: there is no such class.
    """
    names = list(map(str, classes))
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    if not names:
        raise UserError(f"there is no class {name!r}: the task of the model has no classes")
    meant = nearest(name, names)
    raise UserError(f"the model has no class {name!r}.{meant or f' Known: {shortened(names)}'}")
