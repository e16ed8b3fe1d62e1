"""Controls: teachers whose answers lack one thing. What a method gains under a control is not due to that thing.

Controls stand outside the store (`PermutedTeacher(StoredTeacher(...))`), and are of training: a student that asks its teacher
when it is used asks the teacher itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from distilens import draws
from distilens.core import Answer, Batch, Teacher, at_use
from distilens.data.augment import Augment
from distilens.data.batches import Batches
from distilens.data.subset import Split
from distilens.errors import UserError
from distilens.measure.sanity import randomised
from distilens.processor import to_device
from distilens.teachers.live import LiveTeacher
from distilens.teachers.needs import Need, moved, spread

BLOBS = 4
"""Cells along a side of the noise that `blobs` are made of: as coarse as a blob that a network's map has."""
CALIBRATION = 128
"""Images of the training set by which the batch norms of a network with random weights are measured."""


class Control:
    """A teacher around another one."""

    def __init__(self, teacher: Teacher):
        self.inner = teacher

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        raise NotImplementedError

    @property
    def teacher(self) -> Teacher:
        """Who answers when the student is used."""
        return at_use(self.inner)

    @property
    def classes(self) -> tuple[str, ...] | None:
        return getattr(self.inner, "classes", None)

    @property
    def drawing(self) -> bool:
        return getattr(self.inner, "drawing", False)

    @property
    def identity(self) -> dict[str, Any]:
        raise UserError(
            f"a control's answers are not stored: wrap the store, {type(self).__name__}(StoredTeacher(folder, teacher))"
        )

    def notes(self) -> dict[str, float]:
        return getattr(self.inner, "notes", dict)()


class PermutedTeacher(Control):
    """Another image's answers, over the whole training set: what is left when the teacher's answers do not belong to the image.

    The images of a split stand in a circle, in an order drawn by `seed`, and each gets the answers of its neighbour: a fixed
    permutation in which no image keeps its own. The neighbour is shown under its own augmentation; its maps of `of=canonical` are
    moved as the image itself was.

    Args:
        teacher: any.
        only: `all` answers are the other image's, with its targets, scores and trust; or the `maps` alone: targets, logits and
            features stay the image's own, so that the student explains the class that it would explain otherwise. (Then the
            teacher is asked for the image's own maps too, for their targets.)
        seed: of the order.

    Raises:
        UserError: a batch that does not say which set its images are of, or a split of a single image.
    """

    def __init__(self, teacher: Teacher, *, only: Literal["all", "maps"] = "all", seed: int = 0):
        super().__init__(teacher)
        self.only, self.seed = only, seed
        self.orders: dict[Split, np.ndarray] = {}
        self.sets: dict[tuple, Batches] = {}

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = [Need.parse(need) for need in needs]
        maps = [need for need in wanted if need.kind == "maps"]
        if not wanted or (self.only == "maps" and not maps):
            return self.inner(batch, needs)
        other = self.others(batch)
        found = {need.text: self.maps(batch, other, need) for need in maps}
        given = {text: values for text, (values, _, _) in found.items()}
        if self.only == "maps":
            return replace(self.inner(batch, needs), maps=given)
        answer = self.inner(other, [need.text for need in wanted if need.kind != "maps"])
        trusts = [answer.trust, *(trust for _, _, trust in found.values())]
        targets = {text: target for text, (_, target, _) in found.items()}
        known = next((trust for trust in trusts if trust is not None), None)
        return replace(answer, maps=given, targets=targets, trust=known)

    def others(self, batch: Batch) -> Batch:
        """The images that answer for those of a batch, in the same epoch."""
        variant = batch.variant
        if variant is None:
            raise UserError(
                "permuted answers are those of another image of the set, and this batch does not say of which set its images "
                "are. Batches of distilens.data do; build yours with Batch(variant=...)"
            )
        positions = self.order(variant.split)[np.searchsorted(variant.split.index, variant.index)]
        # what is shown untransformed is read untransformed
        augment = None if variant.number is None else variant.augment
        batches = self.batches(variant.split, augment, variant.seed, batch.images.device)
        made = batches.batch(torch.from_numpy(positions), None, variant.number or 0, batch.progress, batch.step)
        return made.replaced(epoch=batch.epoch, seed=batch.seed)

    def order(self, split: Split) -> np.ndarray:
        """For each position in the split that of the image that answers for it: all in one circle, so that none is its own."""
        if split not in self.orders:
            if len(split) < 2:
                raise UserError("permuted answers are those of another image, and this split has only one")
            circle = torch.randperm(len(split), generator=draws.generator("permuted", self.seed)).numpy()
            self.orders[split] = np.empty_like(circle)
            self.orders[split][circle] = np.roll(circle, 1)
        return self.orders[split]

    def batches(self, split: Split, augment: Augment | None, seed: int, device: torch.device) -> Batches:
        """Batches of the split, whose images are read when they are shown: the trainer has them in memory already."""
        key = (split, augment, seed, device)
        if key not in self.sets:
            self.sets[key] = Batches(split, 1, augment=augment, variant_seed=seed, device=device, resident=False)
        return self.sets[key]

    def maps(self, batch: Batch, other: Batch, need: Need) -> tuple[Tensor, Tensor, Tensor | None]:
        """The other images' maps, for the images of the batch that the need asks for; the classes they are of; the trust."""
        chosen = need.rows(batch)
        asked = chosen if len(chosen) else np.zeros(1, int)  # one image tells what maps look like
        rows, some = (to_device(positions, batch.images.device) for positions in (chosen, asked))
        shown, text = (other.untransformed(), need.name) if need.of == "canonical" else (other, need.question)
        answer = self.inner(shown.select(asked), [text])
        values = moved(batch, need, answer.maps[text], some)[: len(rows)]
        trust = answer.trust
        if trust is not None:
            trust = torch.ones(len(batch), device=trust.device).index_copy(0, rows, trust[: len(rows)])
        return spread(batch, rows, values), spread(batch, rows, answer.targets[text][: len(rows)]), trust


class MisregisteredTeacher(Control):
    """Maps that are of the right image in the wrong place: what is left when a map's place does not count.

    Maps of `of=canonical` are not moved with the image (where augmentation moves nothing, they are as they would be); maps of
    `of=images` are mirrored left to right. Everything else is the teacher's own.
    """

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = [Need.parse(need) for need in needs]
        still = [need.text for need in wanted if need.kind == "maps" and need.of == "canonical"]
        mirrored = [need.text for need in wanted if need.kind == "maps" and need.of == "images"]
        answer = self.inner(batch, [need for need in needs if need not in still])
        maps = {text: values.flip(-1) if text in mirrored else values for text, values in answer.maps.items()}
        if not still:
            return replace(answer, maps=maps)
        unmoved = self.inner(batch.untransformed(), still)
        return replace(
            answer,
            maps={**maps, **unmoved.maps},
            targets={**answer.targets, **unmoved.targets},
            trust=unmoved.trust if answer.trust is None else answer.trust,
        )


class RandomMapTeacher(Control):
    """Maps that know nothing of the image, or nothing of the training: what is left when a map's content does not count.

    Everything but the maps is the teacher's own, the targets too. `kind`:

    * `blobs`: the true map's values in the order of a smooth random field, another one for each image (and class), the same each
      time. So a map has exactly the values of the true one, in blobs that are elsewhere.
    * `centre`: the true map's values in the order of the distance from the centre, the largest in the middle.
    * `constant`: 1 everywhere.
    * `network`: the maps of a copy of the teacher with random weights, of the same classes. Its batch norms are measured on the
      first 128 images of the set that the first batch is of.

    Maps of `of=canonical` are replaced before they are moved with the image.

    Args:
        teacher: any; for `network` a live one, or stored answers with the live one at hand.
        kind: see above.
        seed: of the fields, or of the weights.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        kind: Literal["blobs", "centre", "constant", "network"] = "blobs",
        seed: int = 0,
    ):
        super().__init__(teacher)
        self.kind, self.seed = kind, seed
        self.network: LiveTeacher | None = None
        if kind == "network" and not isinstance(self.teacher, LiveTeacher):
            raise UserError(
                "random maps of kind=network are made by a copy of the teacher's network, so there must be one live teacher "
                f"inside; given a {type(self.teacher).__name__}. Of several teachers, give each its own control"
            )

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        answer = self.inner(batch, needs)
        maps = {text: self.replaced(batch, Need.parse(text), answer) for text in answer.maps}
        return replace(answer, maps=maps)

    def replaced(self, batch: Batch, need: Need, answer: Answer) -> Tensor:
        """Other maps for the images that a need asks for."""
        true = answer.maps[need.text]
        chosen = need.rows(batch)
        if not len(chosen):
            return true
        some, rows = batch.select(chosen), to_device(chosen, batch.images.device)
        if self.kind == "network":
            aimed = some.replaced(labels=answer.targets[need.text][rows])
            text = f"{replace(need, target='label').question},of={need.of}"
            found = self.random_network(batch)(aimed, [text]).maps[text]
            return spread(batch, rows, moved(some, replace(need, of="images"), found))
        still = need.of == "canonical"
        values = self.inner(some.untransformed(), [need.name]).maps[need.name] if still else true[rows]
        return spread(batch, rows, moved(some, need, self.reordered(values, some)))

    def reordered(self, maps: Float[Tensor, "b *classes h w"], batch: Batch) -> Float[Tensor, "b *classes h w"]:
        """The values of maps in another order, or ones."""
        if self.kind == "constant":
            return torch.ones_like(maps)
        places = centred(maps) if self.kind == "centre" else fields(maps, batch, self.seed)
        order = places.flatten(-2).argsort(dim=-1, stable=True)
        values = maps.flatten(-2).sort(dim=-1).values
        return torch.zeros_like(values).scatter(-1, order, values).view_as(maps)

    def random_network(self, batch: Batch) -> LiveTeacher:
        """A copy of the teacher as it was before training."""
        if self.network is None:
            images, variant = batch.images, batch.variant
            if variant is not None:  # whichever batch comes first, in whichever process
                images = variant.split.pixels(np.arange(min(CALIBRATION, len(variant.split))))[0].to(images)
            assert isinstance(self.teacher, LiveTeacher)
            self.network = LiveTeacher(randomised(self.teacher.model, calibrate=images, seed=self.seed))
        return self.network


def centred(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """How near each place is to the centre, the nearest largest."""
    down, across = (torch.linspace(-1, 1, length, device=maps.device) for length in maps.shape[-2:])
    return -(down[:, None].square() + across.square()).expand_as(maps)


def fields(maps: Float[Tensor, "b *classes h w"], batch: Batch, seed: int) -> Float[Tensor, "b *classes h w"]:
    """Smooth random fields, by each image's index alone: coarse noise, enlarged."""
    size = (maps.shape[-2], maps.shape[-1])
    grid = (min(BLOBS, size[0]), min(BLOBS, size[1]))
    each = int(np.prod(maps.shape[1:-2]))
    noise = draws.uniform("random maps", batch.index, seed, count=each * grid[0] * grid[1])
    smooth = functional.interpolate(noise.view(-1, each, *grid), size, mode="bicubic", align_corners=False)
    return smooth.view_as(maps)
