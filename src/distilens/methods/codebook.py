"""The codebook of a KD layer: cluster centres of a teacher's features at one tap.

Stage 1: `k` centres over all places of all images. Stage 2: a linear discriminant analysis projects the places; each class is
divided into sub-classes; a table counts, per sub-class, how often the teacher's features are nearer to another sub-class.
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

from distilens.core import Batch
from distilens.data.pipeline import Batches
from distilens.data.source import digest
from distilens.foundation import randomness
from distilens.foundation.errors import UserError
from distilens.foundation.files import write_atomically
from distilens.foundation.fingerprints import key_of
from distilens.foundation.progress import Work
from distilens.methods import METHODS
from distilens.models.taps import LAST, grid

if TYPE_CHECKING:
    from distilens.data.splits import Data, Split
    from distilens.teachers.live import LiveTeacher

DIMENSIONS = 60
"""Maximum number of LDA dimensions (LDA itself has at most classes - 1)."""
KEPT = 2**25
"""Numbers (128 MiB) that the discriminant analysis and the sub-classes read: 524,288 places of 64 channels.

Only these two are subsampled; the table uses every place."""
LEAST = 16_384
"""Minimum number of places per step of the mini-batch k-means; four times the number of templates if that is more."""

MOMENT = 5.0
"""A codebook that takes fewer seconds shows no progress."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """Clusters of a teacher's features at a tap; float32, on the host.

    Attributes:
        stage: 1 or 2.
        tap: the path of the teacher's module.
        size: height and width of the teacher's input; their ratio shows which axes of a feature are places.
        centres: the centres of the templates: stage 1 `[k c]` in feature space, stage 2 `[k m]` in the projected space, class by
            class.
        mean, projection: stage 2: the discriminant analysis maps a feature to `(f - mean) @ projection`.
        classes: stage 2: the number of classes; each has the same number of sub-classes.
        table: stage 2: entry (i, j) is the share of the places of sub-class i whose nearest centre, over all classes, is j. Each
            row sums to 1.
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
        """The channels of the teacher's feature."""
        return (self.centres if self.projection is None else self.projection.T).shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        values = {name: getattr(self, name) for name in ("centres", "mean", "projection", "table")}
        return {name: value.contiguous() for name, value in values.items() if value is not None}

    @cached_property
    def content(self) -> str:
        """A fingerprint of its numbers."""
        return digest(*(part for name, value in self.tensors.items() for part in (name, value.numpy())))

    def save(self, path: str | Path) -> None:
        """Write it as safetensors, with everything else as JSON in the metadata."""
        from safetensors.torch import save

        about = {"stage": self.stage, "tap": self.tap, "size": self.size, "classes": self.classes}
        text = json.dumps({**about, "made from": self.made_from, "content": self.content})
        written = save(self.tensors, {"codebook": text})
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(written))

    @classmethod
    def load(cls, path: str | Path) -> Codebook:
        """Read a codebook that `save` wrote.

        Raises:
            UserError: the file does not exist, is not a codebook, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"no codebook at {path}: distilens codebook RECIPE makes one, or make_codebook")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["codebook"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict
            size = (about["size"][0], about["size"][1])
            rest = {"classes": about["classes"], "made_from": about["made from"]}
            made = cls(about["stage"], about["tap"], size, **tensors, **rest)
            if made.content != about["content"]:
                raise ValueError("its numbers have changed since it was written")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a whole codebook ({error}): delete it and make it again with distilens codebook or make_codebook"
            ) from None
        return made


def check(codebook: Codebook, teacher: LiveTeacher, tap: str) -> None:
    """Raise a `UserError` if a codebook belongs to another teacher or another tap."""
    theirs, ours = codebook.made_from["teacher"], teacher.identity
    if key_of(theirs) != key_of(ours):
        was, now = (f"{identity['teacher']} with weights {identity['weights']}" for identity in (theirs, ours))
        raise UserError(
            f"the codebook belongs to another teacher: it was made from {was}, but this teacher is {now}. Make a codebook of "
            "this teacher"
        )
    path = teacher.model.path_of(tap)
    if codebook.tap != path:
        raise UserError(
            f"the codebook belongs to the teacher's tap {codebook.tap!r}, but the method reads {tap!r}, which is {path!r}"
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
    """Cluster a teacher's features of the untransformed training images. The same seed gives the same codebook.

    Stage 1: mini-batch k-means over all places of all images, in float32. Stage 2, over the labelled images: linear
    discriminant analysis of the places by their image's label (at most `DIMENSIONS`; it uses singular values, so dead or equal
    channels need no shrinkage), k-means into sub-classes within each class, and the table, which counts every place. If there
    are too many places, the analysis and the sub-classes use a random share of them: see `KEPT`.

    Args:
        teacher: the model whose features are clustered.
        data: the data set; only its training split is read.
        tap: the teacher's tap.
        stage: 1 or 2.
        templates: stage 1: the number of centres.
        subclasses: stage 2: sub-classes per class.
        seed: determines the order of the images, the first centres, and the random share of the places.
        passes: stage 1: passes over all places; each needs a forward pass of the teacher. Stage 2 always makes two.
        batch_size: images per batch.
        say: receives lines of text.

    Raises:
        UserError: there are more templates than places, or more sub-classes than places of a class; or the features are not a
            grid, or not finite.

    Source: Gorgun, Gurbuz and Alatan 2023 (letKD, arXiv 2309.02843), supplement. They use faiss's k-means, with 20 passes over
    data in memory. Their table omits the last places if their number is not a multiple of 10,000.
    """
    times = passes if stage == 1 else 2
    places = Places(teacher, data.train, tap, seed, batch_size, labelled=stage == 2, passes=times, say=say)
    size, path = teacher.model.size, teacher.model.path_of(tap)
    options = {"passes": passes, "templates": templates} if stage == 1 else {"subclasses": subclasses}
    made_from = {
        "teacher": teacher.identity,
        "data": data.fingerprint,
        "options": {**options, "seed": seed, "batch size": batch_size},
    }
    say(f"codebook: {places.count:,} places with {places.channels} channels, at the teacher's {path}")
    if stage == 1:
        return Codebook(1, path, size, cluster_places(places, templates, passes, seed), made_from=made_from)
    mean, projection, centres, used = analyse_discriminants(places, data.classes, subclasses, seed)
    say(f"codebook: {projection.shape[1]} dimensions and {len(centres)} sub-classes, from {used:,} of the places")
    table = count_confusions(places, mean, projection, centres, len(data.classes))
    return Codebook(2, path, size, centres, mean, projection, table, len(data.classes), made_from)


class Places:
    """A teacher's features at every place of a split's images, batch by batch, in a random order given by the seed.

    Attributes:
        each: places per image.
        count: places of all images.
        channels: channels of the feature.
    """

    def __init__(
        self,
        teacher: LiveTeacher,
        split: Split,
        tap: str,
        seed: int,
        size: int,
        *,
        labelled: bool,
        passes: int,
        say: Callable[[str], object],
    ):
        self.teacher, self.tap, self.seed = teacher, tap, seed
        self.batches = Batches(split, size, device=teacher.model.device)
        positions = torch.from_numpy(np.flatnonzero(split.targets >= 0) if labelled else np.arange(len(split)))
        order = torch.randperm(len(positions), generator=randomness.generator("codebook", seed))
        self.parts = positions[order].split(size)
        if not len(positions):
            raise UserError(
                "a codebook of stage 2 is made from labelled images, but none of the training images has a label"
            )
        _, first = self.read(self.parts[0][:1], None)
        self.each, self.channels = first.shape[1:]
        self.count = self.each * len(positions)
        self.work = Work(None, "codebook:", passes * len(positions), unit="images", after=MOMENT, say=say)

    def read(self, positions: Tensor, raw: Tensor | None) -> tuple[Batch, Float[Tensor, "b n c"]]:
        """A batch of images, and the features of their places."""
        batch = self.batches.batch(positions, raw, 0, 0.0)
        _, features = self.teacher.forward(batch.images, [self.tap])
        rows = grid(features[self.tap], self.teacher.model.size).float().flatten(2).transpose(1, 2)
        if not rows.isfinite().all():
            raise UserError(
                f"the teacher's features at {self.tap!r} are not all finite: they cannot be clustered into a codebook"
            )
        return batch, rows

    def __iter__(self) -> Iterator[tuple[Batch, Float[Tensor, "b n c"]]]:
        for positions, raw in self.batches.read(self.parts):
            yield self.read(positions, raw)
            self.work.advance(len(positions))

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """The features as rows, in blocks of `size`. The last block has the rest, so every row is used."""
        waiting: list[np.ndarray] = []
        for _, features in self:
            waiting.append(features.flatten(0, 1).cpu().numpy())
            if sum(map(len, waiting)) >= size:
                rows = np.concatenate(waiting)
                whole = len(rows) // size * size
                yield from np.split(rows[:whole], whole // size)
                waiting = [rows[whole:]] if whole < len(rows) else []
        if waiting:
            yield np.concatenate(waiting)


def cluster_places(places: Places, templates: int, passes: int, seed: int) -> Float[Tensor, "k c"]:
    """The centres of mini-batch k-means over all places, initialised by k-means++ from the first block."""
    from sklearn.cluster import MiniBatchKMeans

    if templates > places.count:
        raise UserError(
            f"templates={templates:,} are more than the {places.count:,} places of the training images "
            f"({places.each} per image) at the teacher's tap {places.tap!r}: ask for fewer"
        )
    size = max(4 * templates, LEAST)
    means = MiniBatchKMeans(templates, batch_size=size, random_state=seed, compute_labels=False)
    for _ in range(passes):
        for rows in places.blocks(size):
            means.partial_fit(rows)
    return torch.from_numpy(means.cluster_centers_).float()


def analyse_discriminants(
    places: Places, classes: tuple[str, ...], subclasses: int, seed: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, "c m"], Float[Tensor, "k m"], int]:
    """The LDA's mean and projection, the centres of the sub-classes, class by class, and the number of places used."""
    from sklearn.cluster import KMeans
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    rows, labels = sample(places, seed)
    for number, name in enumerate(classes):
        there = int((labels == number).sum())
        if there < subclasses:
            raise UserError(
                f"the class {name!r} has {there:,} places of {len(labels):,} at the teacher's tap {places.tap!r}, but "
                f"subclasses={subclasses} needs at least {subclasses}: ask for fewer, or add images of this class"
            )
    most = min(DIMENSIONS, len(classes) - 1, places.channels)
    analysis = LinearDiscriminantAnalysis(n_components=most).fit(rows, labels)
    mean, projection = analysis.xbar_, analysis.scalings_[:, :most]
    seen = (rows - mean) @ projection
    # one thread: with several the order of sums is random; places that are all equal need no warning
    with threadpool_limits(1, "openmp"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(subclasses, random_state=seed)
        centres = np.concatenate([means.fit(seen[labels == c]).cluster_centers_ for c in range(len(classes))])
    tensors = (torch.from_numpy(np.ascontiguousarray(array)).float() for array in (mean, projection, centres))
    return *tensors, len(labels)  # type: ignore[return-value]


def sample(places: Places, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and the labels of their images: all places, or a random share of `KEPT` numbers, drawn by image index."""
    share = KEPT / (places.count * places.channels)
    rows, labels = [], []
    for batch, features in places:
        mask = randomness.uniform("places", batch.index, seed, count=places.each) < share
        rows.append(features[mask].cpu().numpy())
        labels.append(batch.targets[:, None].expand_as(mask)[mask].cpu().numpy())
    return np.concatenate(rows), np.concatenate(labels)


def count_confusions(
    places: Places,
    mean: Float[Tensor, " c"],
    projection: Float[Tensor, "c m"],
    centres: Float[Tensor, "k m"],
    classes: int,
) -> Float[Tensor, "k k"]:
    """The table over all places. A sub-class without places (an identical centre has them) gets 1 on the diagonal."""
    device, count = places.batches.device, len(centres)
    mean, projection, centres = mean.to(device), projection.to(device), centres.to(device)
    counts = torch.zeros(count, count, dtype=torch.int32, device=device)
    for batch, features in places:
        labels = batch.targets[:, None].expand(features.shape[:2])
        for rows, own in zip(features.flatten(0, 1).split(4096), labels.flatten().split(4096), strict=True):
            near = nearness((rows - mean) @ projection, centres)
            pair = (nearest_own_subclass(near, own, classes), near.argmax(1))
            counts.index_put_(pair, counts.new_ones(()), accumulate=True)
    empty = (counts.sum(1) == 0).nonzero()[:, 0]
    counts[empty, empty] = 1
    return (counts / counts.sum(1, keepdim=True)).float().cpu()


def nearness(points: Float[Tensor, "*b m"], centres: Float[Tensor, "k m"]) -> Float[Tensor, "*b k"]:
    """`2 <x, c> - |c|^2`: `-|x - c|^2` without the part that all centres share. It never builds a difference `[b k m]`."""
    return 2 * points @ centres.T - centres.square().sum(1)


def nearest_own_subclass(near: Float[Tensor, "*b k"], labels: Int[Tensor, "*b"], classes: int) -> Int[Tensor, "*b"]:
    """The nearest sub-class of each place's own class, as an index over the sub-classes of all classes."""
    each = near.shape[-1] // classes
    own = near.unflatten(-1, (classes, each)).gather(-2, labels[..., None, None].expand(*labels.shape, 1, each))
    return labels * each + own.squeeze(-2).argmax(-1)


def with_content(part: str) -> str:
    """A method's notation with the content of its codebook instead of the path, so that moving the file changes nothing."""
    spec = METHODS.resolve(part)
    path = spec.options.get("codebook")
    return part if path is None else str(spec.replaced(codebook=Codebook.load(path).content))
