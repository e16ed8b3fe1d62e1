"""Controls: teachers whose answers lack one property. A gain that stays under a control does not come from that property.

A control wraps the store: `PermutedTeacher(StoredTeacher(...))`. It acts in training only: a student that needs its teacher at
inference asks the original teacher.
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

from distilens.core import Answer, Batch, Teacher, as_teacher
from distilens.data.augment import Augment
from distilens.data.pipeline import Batches
from distilens.data.splits import Split
from distilens.foundation import randomness
from distilens.foundation.devices import to_device
from distilens.foundation.errors import UserError
from distilens.measure.maps.sanity import randomised
from distilens.teachers.live import LiveTeacher
from distilens.teachers.needs import Need, moved, spread

BLOBS = 4
"""Cells along a side of the noise for `blobs`: as coarse as the blobs in a network's map."""
CALIBRATION = 128
"""Training images on which the batch norm statistics of a network with random weights are computed."""


class Control(Teacher):
    """A teacher that wraps another one."""

    seed = 0
    network: LiveTeacher | None = None

    def __init__(self, teacher: Teacher):
        self.inner = as_teacher(teacher)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"

    def live(self) -> Teacher:
        return self.inner.live()

    @property
    def classes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        return self.inner.classes

    @property
    def drawing(self) -> bool:  # type: ignore[override]
        return self.inner.drawing

    @property
    def identity(self) -> dict[str, Any]:
        raise UserError(
            "a control's answers are not stored: put the control around the store, "
            f"{type(self).__name__}(StoredTeacher(folder, teacher))"
        )

    def notes(self) -> dict[str, float]:
        return self.inner.notes()

    def check_one_live(self, what: str) -> None:
        """Check that there is one network of which a copy can be made.

        Raises:
            UserError: there are several, or none.
        """
        if not isinstance(self.live(), LiveTeacher):
            raise UserError(
                f"{what} come from a copy of the teacher's network, so the control needs one live teacher; given a "
                f"{type(self.live()).__name__}. If there are several teachers, give each its own control"
            )

    def random_network(self, batch: Batch) -> LiveTeacher:
        """A copy of the teacher with random weights.

        The batch norm statistics are computed on the first 128 images of the set of the first batch.
        """
        if self.network is None:
            images, variant = batch.images, batch.variant
            if variant is not None:  # so the first batch does not matter, in any process
                images = variant.split.pixels(np.arange(min(CALIBRATION, len(variant.split))))[0].to(images)
            live = self.live()
            assert isinstance(live, LiveTeacher)
            self.network = LiveTeacher(randomised(live.model, calibrate=images, seed=self.seed))
        return self.network


class PermutedTeacher(Control):
    """Permuted answers: each image gets the teacher's answers to another image of the training set.

    The images of a split form a circle in a random order given by `seed`. Each image gets the answers of its neighbour, so no
    image keeps its own. The neighbour is shown with its own augmentation; its maps of `of=canonical` are moved as the image was.

    Args:
        teacher: any teacher.
        only: with `all`, all answers are those of the other image, with its targets, scores and trust. With `maps`, only the
            maps are; targets, logits and features stay the image's own, so that the student explains the same class as without
            the control. (The teacher is then also asked for the image's own maps, for their targets.)
        seed: determines the order.

    Raises:
        UserError: the batch does not say which set its images are from, or the split has a single image.
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
        replacements = {need.text: self.maps(batch, other, need) for need in maps}
        given = {text: values for text, (values, _, _) in replacements.items()}
        if self.only == "maps":
            return replace(self.inner(batch, needs), maps=given)
        answer = self.inner(other, [need.text for need in wanted if need.kind != "maps"])
        trusts = [answer.trust, *(trust for _, _, trust in replacements.values())]
        targets = {text: target for text, (_, target, _) in replacements.items()}
        known = next((trust for trust in trusts if trust is not None), None)
        return replace(answer, maps=given, targets=targets, trust=known)

    def others(self, batch: Batch) -> Batch:
        """The images whose answers replace those of a batch, in the same epoch."""
        variant = batch.variant
        if variant is None:
            raise UserError(
                "permuted answers are those of another image of the set, but this batch does not say which set its images are "
                "from. Batches of distilens.data do; build yours with Batch(variant=...)"
            )
        positions = self.order(variant.split)[np.searchsorted(variant.split.index, variant.index)]
        # images that are shown untransformed get an untransformed neighbour
        augment = None if variant.number is None else variant.augment
        batches = self.batches(variant.split, augment, variant.seed, batch.images.device)
        made = batches.batch(torch.from_numpy(positions), None, variant.number or 0, batch.progress, batch.step)
        return made.replaced(epoch=batch.epoch, seed=batch.seed)

    def order(self, split: Split) -> np.ndarray:
        """The position, in the split, of the image that replaces each image: all in one circle, so that none keeps its own."""
        if split not in self.orders:
            if len(split) < 2:
                raise UserError("permuted answers are those of another image, but this split has only one")
            circle = torch.randperm(len(split), generator=randomness.generator("permuted", self.seed)).numpy()
            self.orders[split] = np.empty_like(circle)
            self.orders[split][circle] = np.roll(circle, 1)
        return self.orders[split]

    def batches(self, split: Split, augment: Augment | None, seed: int, device: torch.device) -> Batches:
        """Batches of the split. Images are read when needed, because the trainer already has the set in memory."""
        key = (split, augment, seed, device)
        if key not in self.sets:
            self.sets[key] = Batches(split, 1, augment=augment, variant_seed=seed, device=device, resident=False)
        return self.sets[key]

    def maps(self, batch: Batch, other: Batch, need: Need) -> tuple[Tensor, Tensor, Tensor | None]:
        """The other images' maps for the images that the need asks for, the classes that they explain, and the trust."""
        chosen = need.rows(batch)
        asked = chosen if len(chosen) else np.zeros(1, int)  # one image shows the shape of the maps
        rows, shifted = (to_device(positions, batch.images.device) for positions in (chosen, asked))
        shown, text = (other.untransformed(), need.name) if need.of == "canonical" else (other, need.question)
        answer = self.inner(shown.select(asked), [text])
        values = moved(batch, need, answer.maps[text], shifted)[: len(rows)]
        trust = answer.trust
        if trust is not None:
            trust = torch.ones(len(batch), device=trust.device).index_copy(0, rows, trust[: len(rows)])
        return spread(batch, rows, values), spread(batch, rows, answer.targets[text][: len(rows)]), trust


class MisregisteredTeacher(Control):
    """Misregistered maps: the maps are those of the right image, but at the wrong place.

    Maps of `of=canonical` are not moved with the image. (If the augmentation does not move the image, they do not change.) Maps
    of `of=images` are mirrored left to right. Everything else is the teacher's own answer.
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
    """Random maps: maps without information about the image, or from a network without training.

    Only the maps are replaced; targets and all other answers are the teacher's own. `kind`:

    * `blobs`: the values of the true map, sorted into a smooth random field. Each image (and class) has its own field, the same
      each time. So the map has exactly the values of the true map, in blobs at other places.
    * `centre`: the values of the true map, sorted by distance from the centre, the largest in the middle.
    * `constant`: 1 everywhere.
    * `network`: the maps of a copy of the teacher with random weights, for the same classes.

    Maps of `of=canonical` are replaced before they are moved with the image.

    Args:
        teacher: any teacher; for `network` a live one, or stored answers with a live teacher.
        kind: see above.
        seed: determines the fields, or the random weights.
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
        if kind == "network":
            self.check_one_live("random maps of kind=network")

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        answer = self.inner(batch, needs)
        maps = {text: self.replaced(batch, Need.parse(text), answer) for text in answer.maps}
        return replace(answer, maps=maps)

    def replaced(self, batch: Batch, need: Need, answer: Answer) -> Tensor:
        """The replaced maps of the images that a need asks for."""
        true = answer.maps[need.text]
        chosen = need.rows(batch)
        if not len(chosen):
            return true
        selected, rows = batch.select(chosen), to_device(chosen, batch.images.device)
        if self.kind == "network":
            aimed = selected.replaced(targets=answer.targets[need.text][rows])
            asked = replace(need, draw=None, every=1, target="top1" if need.classes == "all" else "label")
            ((maps, _),) = self.random_network(batch).explained(aimed, [asked])
            return spread(batch, rows, maps)
        still = need.of == "canonical"
        values = self.inner(selected.untransformed(), [need.name]).maps[need.name] if still else true[rows]
        return spread(batch, rows, moved(selected, need, self.reordered(values, selected)))

    def reordered(self, maps: Float[Tensor, "b *classes h w"], batch: Batch) -> Float[Tensor, "b *classes h w"]:
        """The values of the maps in another order, or ones."""
        if self.kind == "constant":
            return torch.ones_like(maps)
        places = centred(maps) if self.kind == "centre" else fields(maps, batch, self.seed)
        order = places.flatten(-2).argsort(dim=-1, stable=True)
        values = maps.flatten(-2).sort(dim=-1).values
        return torch.zeros_like(values).scatter(-1, order, values).view_as(maps)


class RandomFeatureTeacher(Control):
    """Features of a network without training: those of a copy of the teacher with random weights.

    Only the features are replaced; logits, maps and modules are the teacher's own. A student that gains as much from these
    features does not learn what the teacher learnt, but only to spread its features like any network.

    Args:
        teacher: a live teacher, or stored answers with a live teacher.
        seed: determines the random weights.
    """

    def __init__(self, teacher: Teacher, *, seed: int = 0):
        super().__init__(teacher)
        self.seed = seed
        self.check_one_live("random features")

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        features = [need for need in needs if Need.parse(need).kind == "features"]
        answer = self.inner(batch, [need for need in needs if need not in features])
        if not features:
            return answer
        return replace(answer, features=self.random_network(batch)(batch, features).features)


def centred(maps: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """The closeness of each place to the centre; largest in the middle."""
    down, across = (torch.linspace(-1, 1, length, device=maps.device) for length in maps.shape[-2:])
    return -(down[:, None].square() + across.square()).expand_as(maps)


def fields(maps: Float[Tensor, "b *classes h w"], batch: Batch, seed: int) -> Float[Tensor, "b *classes h w"]:
    """Smooth random fields: enlarged coarse noise that depends only on the seed and the image's index."""
    size = (maps.shape[-2], maps.shape[-1])
    grid = (min(BLOBS, size[0]), min(BLOBS, size[1]))
    each = int(np.prod(maps.shape[1:-2]))
    noise = randomness.uniform("random maps", batch.index, seed, count=each * grid[0] * grid[1])
    smooth = functional.interpolate(noise.view(-1, each, *grid), size, mode="bicubic", align_corners=False)
    return smooth.view_as(maps)
