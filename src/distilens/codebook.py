"""What a KD layer is taught by: a teacher's features at one tap, summed up once as centres of clusters.

Stage 1: `k` centres of all places of all images. Stage 2: places as a linear discriminant analysis sees them, each class cut into
sub-classes, and for each sub-class how often the teacher's features there are nearer to another one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from distilens import draws
from distilens.core import Batch
from distilens.data.batches import Batches
from distilens.data.source import digest
from distilens.errors import UserError
from distilens.files import key_of, write_atomically
from distilens.taps import LAST, grid

if TYPE_CHECKING:
    from distilens.data.subset import Data, Split
    from distilens.teachers.live import LiveTeacher

DIMENSIONS = 60
"""Of the discriminant analysis at most; it has no more than classes - 1."""
KEPT = 2**25
"""Numbers (128 MiB) of the places that the discriminant analysis and sub-classes are made from: 524,288 places of 64 channels.
All others are left out of these two, and of nothing else."""
LEAST = 16_384
"""Places that a step of the mini-batch k-means sees at least; four times as many as there are templates if that is more."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """A teacher's features at a tap, summed up; float32, on the host.

    Attributes:
        stage: 1 or 2.
        tap: the path of the teacher's module.
        size: height and width of the teacher's input, whose proportion tells which of a feature's axes are places.
        centres: of the templates: stage 1 `[k c]` among the features, stage 2 `[k m]` among the projected ones, class by class.
        mean, projection: stage 2: `(f - mean) @ projection` is what the discriminant analysis sees of a feature.
        classes: stage 2: how many; of each there are equally many sub-classes.
        table: stage 2: row i is the share of the places of sub-class i whose nearest centre, of all classes', is j. Sums to 1.
        made_from: the teacher's identity, the data's fingerprint and the options, as plain data.
    """

    stage: int
    tap: str
    size: tuple[int, int]
    centres: Float[Tensor, "k m"]
    mean: Float[Tensor, " c"] | None = None
    projection: Float[Tensor, "c m"] | None = None
    table: Float[Tensor, "k k"] | None = None
    classes: int = 0
    made_from: Mapping[str, Any] = field(default_factory=dict)

    @property
    def templates(self) -> int:
        return len(self.centres)

    @property
    def channels(self) -> int:
        """Of the teacher's feature."""
        return (self.centres if self.projection is None else self.projection.T).shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in ("centres", "mean", "projection", "table")}
        return {name: value.contiguous() for name, value in found.items() if value is not None}

    @cached_property
    def content(self) -> str:
        """A fingerprint of its numbers."""
        return digest(*(part for name, value in self.tensors.items() for part in (name, value.numpy())))

    def save(self, path: str | Path) -> None:
        """Write it as safetensors, with all else as JSON among the metadata."""
        from safetensors.torch import save

        about = {"stage": self.stage, "tap": self.tap, "size": self.size, "classes": self.classes}
        text = json.dumps({**about, "made from": self.made_from, "content": self.content})
        written = save(self.tensors, {"codebook": text})
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(written))

    @classmethod
    def load(cls, path: str | Path) -> Codebook:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, not a codebook, or not a whole one.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"no codebook at {path}: distilens codebook RECIPE makes one, or make_codebook")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["codebook"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
            size = (about["size"][0], about["size"][1])
            said = {"classes": about["classes"], "made_from": about["made from"]}
            made = cls(about["stage"], about["tap"], size, **tensors, **said)
            if made.content != about["content"]:
                raise ValueError("its numbers are not those that were written")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a whole codebook ({error}): delete it and make it again, with distilens codebook or make_codebook"
            ) from None
        return made


def check(codebook: Codebook, teacher: LiveTeacher, tap: str) -> None:
    """Raise a `UserError` where a codebook is of another teacher, or of another tap of it."""
    theirs, ours = codebook.made_from["teacher"], teacher.identity
    if key_of(theirs) != key_of(ours):
        said = " and ".join(f"{one['teacher']} with weights {one['weights']}" for one in (theirs, ours))
        raise UserError(
            f"the codebook is of another teacher than the one that is asked: {said}. Make one of this teacher"
        )
    path = teacher.model.path_of(tap)
    if codebook.tap != path:
        raise UserError(
            f"the codebook is of the teacher's tap {codebook.tap!r}; asked for is {tap!r}, which is {path!r}"
        )


def make_codebook(
    teacher: LiveTeacher,
    data: Data,
    *,
    tap: str = LAST,
    stage: int = 1,
    templates: int = 4096,
    subclasses: int = 8,
    seed: int = 0,
    passes: int = 2,
    batch_size: int = 128,
    say: Callable[[str], object] = lambda text: None,
) -> Codebook:
    """Sum up a teacher's features of the untransformed training images; the same for the same seed.

    Stage 1: k-means over all places of all images, by mini-batches, in float32. Stage 2, over the labelled images: linear
    discriminant analysis of places by their image's label (`DIMENSIONS` at most; by singular values, so it needs no shrinkage
    where channels are dead or alike), k-means into sub-classes within each class, and the table, which counts every place. The
    analysis and the sub-classes are made from a random share of the places where all would be too many: see `KEPT`.

    Args:
        tap: the teacher's.
        templates: stage 1: how many centres.
        subclasses: stage 2: how many a class.
        seed: of the order of the images, of the first centres, and of which places are kept.
        passes: stage 1: how often all places are seen; each costs the teacher's forwards. Stage 2 takes two.
        batch_size: images at a time.
        say: takes a line of text.

    Raises:
        UserError: more templates than places, more sub-classes than a class has places, features that are no grid or not finite.

    Source: Gorgun, Gurbuz and Alatan 2023 (letKD, arXiv 2309.02843), supplement. Their k-means is faiss's, 20 passes over what is
    held in memory; their table leaves out the last places where blocks of 10,000 do not come out even.
    """
    places = Places(teacher, data.train, tap, seed, batch_size, labelled=stage == 2)
    size, path = teacher.model.size, teacher.model.path_of(tap)
    options = {"passes": passes, "templates": templates} if stage == 1 else {"subclasses": subclasses}
    made_from = {
        "teacher": teacher.identity,
        "data": data.fingerprint,
        "options": {**options, "seed": seed, "batch size": batch_size},
    }
    say(f"codebook: {places.count:,} places with {places.channels} channels, at the teacher's {path}")
    if stage == 1:
        return Codebook(1, path, size, clustered(places, templates, passes, seed), made_from=made_from)
    mean, projection, centres, used = discriminated(places, data.classes, subclasses, seed)
    say(f"codebook: {projection.shape[1]} dimensions and {len(centres)} sub-classes, from {used:,} of the places")
    table = confused(places, mean, projection, centres, len(data.classes))
    return Codebook(2, path, size, centres, mean, projection, table, len(data.classes), made_from)


class Places:
    """A teacher's features at every place of the images of a split, a batch of images at a time, in an order that the seed draws.

    Attributes:
        each: places of an image.
        count: of all images.
        channels: of the feature.
    """

    def __init__(self, teacher: LiveTeacher, split: Split, tap: str, seed: int, size: int, *, labelled: bool):
        self.teacher, self.tap, self.seed = teacher, tap, seed
        self.batches = Batches(split, size, device=teacher.model.device)
        chosen = torch.from_numpy(np.flatnonzero(split.labels >= 0) if labelled else np.arange(len(split)))
        order = torch.randperm(len(chosen), generator=draws.generator("codebook", seed))
        self.parts = chosen[order].split(size)
        if not len(chosen):
            raise UserError(
                "a codebook of stage 2 is made from labelled images, and none of the training images has a label"
            )
        _, first = self.read(self.parts[0][:1], None)
        self.each, self.channels = first.shape[1:]
        self.count = self.each * len(chosen)

    def read(self, positions: Tensor, raw: Tensor | None) -> tuple[Batch, Float[Tensor, "b n c"]]:
        """Some images, and the features of their places."""
        batch = self.batches.batch(positions, raw, 0, 0.0)
        _, features = self.teacher.forward(batch.images, [self.tap])
        found = grid(features[self.tap], self.teacher.model.size).float().flatten(2).transpose(1, 2)
        if not found.isfinite().all():
            raise UserError(
                f"the teacher's features at {self.tap!r} are not all finite: no codebook can be made of them"
            )
        return batch, found

    def __iter__(self) -> Iterator[tuple[Batch, Float[Tensor, "b n c"]]]:
        for positions, raw in self.batches.read(self.parts):
            yield self.read(positions, raw)

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """The features as rows, so many at a time; the last block has what is left, so that none is lost."""
        waiting: list[np.ndarray] = []
        for _, found in self:
            waiting.append(found.flatten(0, 1).cpu().numpy())
            if sum(map(len, waiting)) >= size:
                rows = np.concatenate(waiting)
                whole = len(rows) // size * size
                yield from np.split(rows[:whole], whole // size)
                waiting = [rows[whole:]] if whole < len(rows) else []
        if waiting:
            yield np.concatenate(waiting)


def clustered(places: Places, templates: int, passes: int, seed: int) -> Float[Tensor, "k c"]:
    """Centres by mini-batch k-means over all places; they start among those of the first block (k-means++)."""
    from sklearn.cluster import MiniBatchKMeans

    if templates > places.count:
        raise UserError(
            f"templates={templates:,} are more than the {places.count:,} places of the training images "
            f"({places.each} an image) at the teacher's tap {places.tap!r}: ask for fewer"
        )
    size = max(4 * templates, LEAST)
    means = MiniBatchKMeans(templates, batch_size=size, random_state=seed, compute_labels=False)
    for _ in range(passes):
        for rows in places.blocks(size):
            means.partial_fit(rows)
    return torch.from_numpy(means.cluster_centers_).float()


def discriminated(
    places: Places, classes: tuple[str, ...], subclasses: int, seed: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, "c m"], Float[Tensor, "k m"], int]:
    """The analysis (mean and projection), the centres of the sub-classes, class by class, and how many places they are from."""
    from sklearn.cluster import KMeans
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    rows, labels = sample(places, seed)
    for number, name in enumerate(classes):
        there = int((labels == number).sum())
        if there < subclasses:
            raise UserError(
                f"the class {name!r} has {there:,} places of {len(labels):,} at the teacher's tap {places.tap!r}, and "
                f"subclasses={subclasses} asks for at least as many: ask for fewer, or give it more images"
            )
    most = min(DIMENSIONS, len(classes) - 1, places.channels)
    analysis = LinearDiscriminantAnalysis(n_components=most).fit(rows, labels)
    mean, projection = analysis.xbar_, analysis.scalings_[:, :most]
    seen = (rows - mean) @ projection
    # one thread: several add up in the order in which they come; places that are all alike are no reason for a warning
    with threadpool_limits(1, "openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(subclasses, random_state=seed)
        centres = np.concatenate([means.fit(seen[labels == c]).cluster_centers_ for c in range(len(classes))])
    found = (torch.from_numpy(np.ascontiguousarray(array)).float() for array in (mean, projection, centres))
    return *found, len(labels)  # type: ignore[return-value]


def sample(places: Places, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and their images' labels: all, or as many as are to be kept, each drawn by its image's index."""
    share = KEPT / (places.count * places.channels)
    rows, labels = [], []
    for batch, found in places:
        drawn = draws.uniform("places", batch.index, seed, count=places.each) < share
        rows.append(found[drawn].cpu().numpy())
        labels.append(batch.labels[:, None].expand_as(drawn)[drawn].cpu().numpy())
    return np.concatenate(rows), np.concatenate(labels)


def confused(
    places: Places,
    mean: Float[Tensor, " c"],
    projection: Float[Tensor, "c m"],
    centres: Float[Tensor, "k m"],
    classes: int,
) -> Float[Tensor, "k k"]:
    """The table over all places. A sub-class to which no place belongs (its twin has them) has all its share with itself."""
    device, count = places.batches.device, len(centres)
    mean, projection, centres = mean.to(device), projection.to(device), centres.to(device)
    counts = torch.zeros(count, count, dtype=torch.int32, device=device)
    for batch, found in places:
        labels = batch.labels[:, None].expand(found.shape[:2])
        for rows, own in zip(found.flatten(0, 1).split(4096), labels.flatten().split(4096), strict=True):
            near = nearness((rows - mean) @ projection, centres)
            pair = (chosen(near, own, classes), near.argmax(1))
            counts.index_put_(pair, counts.new_ones(()), accumulate=True)
    empty = (counts.sum(1) == 0).nonzero()[:, 0]
    counts[empty, empty] = 1
    return (counts / counts.sum(1, keepdim=True)).float().cpu()


def nearness(points: Float[Tensor, "*b m"], centres: Float[Tensor, "k m"]) -> Float[Tensor, "*b k"]:
    """`2 <x, c> - |c|^2`, which is `-|x - c|^2` but for what all centres share: no difference `[b k m]` is ever made."""
    return 2 * points @ centres.T - centres.square().sum(1)


def chosen(near: Float[Tensor, "*b k"], labels: Int[Tensor, "*b"], classes: int) -> Int[Tensor, "*b"]:
    """The nearest of the sub-classes of each place's own class, counted over all classes'."""
    each = near.shape[-1] // classes
    own = near.unflatten(-1, (classes, each)).gather(-2, labels[..., None, None].expand(*labels.shape, 1, each))
    return labels * each + own.squeeze(-2).argmax(-1)
