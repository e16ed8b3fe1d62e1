"""A teacher's answers, recorded once and replayed: what is there is read, what is missing is asked of the teacher and kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from distilens.core import Answer, Batch
from distilens.data import load
from distilens.data.cached import readable
from distilens.data.variant import Variant
from distilens.errors import UserError
from distilens.files import read_json
from distilens.specs import Spec
from distilens.teachers.codecs import Codec, check_finite, codec_of, sent
from distilens.teachers.judges import build_judge
from distilens.teachers.needs import Need, moved, spread
from distilens.teachers.store import Different, Shelf, check_room, file_name

TOGETHER = 16
"""Answers are made for a multiple of so many images: then their bytes do not depend on which other images they were made with.
(On a CPU a batch of 1, 7 or 127 takes other kernels, and differs in the last bit of float32.) The places beyond the images that
are asked for go to others of the batch that have no record yet, and where there are none, to repeats."""


@runtime_checkable
class Recordable(Protocol):
    """A teacher whose answers can be kept: it says what they depend on."""

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def precision(self) -> str: ...

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer: ...


@dataclass
class OpenShelf:
    """A shelf in use, and the pictures that it was opened for."""

    shelf: Shelf
    codec: Codec
    variant: Variant

    def rows(self, batch: Batch, need: Need, positions: np.ndarray) -> np.ndarray:
        """The numbers of the records of some images of a batch."""
        variant = variant_of(batch, need)
        return self.shelf.rows(variant.index[positions], None if need.of == "canonical" else variant.number)


@dataclass
class Request:
    """What is read of a shelf for a batch.

    Attributes:
        need: whose answers they are; others that read the same shelf differ in which images they want.
        chosen: the positions in the batch of the images that are asked for, sorted.
        records: theirs; the ones at `missing` are to be made.
    """

    need: Need
    place: OpenShelf
    chosen: np.ndarray
    records: np.ndarray
    missing: np.ndarray


class StoredTeacher:
    """A teacher that answers from a folder, and fills it where it is empty.

    Logits and features are kept for each variant of an image; maps and scores `of=canonical` once, and moved with the image.
    Whatever was recorded from another teacher, explainer, data set or augmentation is refused. Answers equal those of the
    teacher itself, with the same variants, to float16 rounding.

    Args:
        folder: where the records are, or will be.
        teacher: what is asked when a record is missing; None reads only.
        maps: how maps are written: `float16` (11 bits) or `uint8` (256 levels between each map's smallest and largest value).
        again: the command that records, for messages.
        say: takes a line of text, such as what will be written.
        variants: how many variants of an image will be asked for: for the room that they need on the disk.
    """

    def __init__(
        self,
        folder: str | Path,
        teacher: Recordable | None = None,
        *,
        maps: Literal["float16", "uint8"] = "float16",
        again: str | None = None,
        say: Callable[[str], object] = lambda text: None,
        variants: int = 1,
    ):
        self.folder, self.teacher, self.maps = Path(folder), teacher, maps
        self.again = again or (
            "delete that folder" if teacher else "StoredTeacher(folder, teacher) does as it is asked"
        )
        self.say, self.variants = say, variants
        self.opened: dict[tuple, OpenShelf] = {}
        self.recorded = 0  # answers that the teacher was asked for

    def __repr__(self) -> str:
        return f"StoredTeacher({str(self.folder)!r}, {self.teacher!r})"

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = [as_shown(batch, Need.parse(need)) for need in needs]
        logits = [need for need in wanted if need.kind == "logits"]
        most = max(logits, key=lambda need: need.top or sys.maxsize, default=None)  # as exactly as any method asks
        read = [need for need in wanted if need is most or need.kind in ("features", "maps", "scores", "pruned")]
        shelves: dict[str, list[Need]] = {}
        for need in read:
            shelves.setdefault(need.name, []).append(need)
        requests = {name: self.request(batch, needs) for name, needs in shelves.items()}
        self.fill(batch, list(requests.values()))
        found = {need.text: values(batch, need, requests[need.name]) for need in read}
        maps = {need.text: found[need.text] for need in wanted if need.kind == "maps"}
        return Answer(
            logits=found[most.text][0] if most else None,
            features={need.what: found[need.text][0] for need in wanted if need.kind == "features"},
            maps={text: values for text, (values, _) in maps.items()},
            targets={text: targets for text, (_, targets) in maps.items()},
            scores={need.what: found[need.text][0] for need in wanted if need.kind == "scores"},
            pruned={need.what: found[need.text][0] for need in wanted if need.kind == "pruned"},
            modules=self.modules(batch, [need.text for need in wanted if need.kind == "module"]),
        )

    @property
    def identity(self) -> dict[str, Any]:
        return self.asked.identity

    @property
    def precision(self) -> str:
        return self.asked.precision

    @property
    def asked(self) -> Recordable:
        """The teacher whose answers these are."""
        if self.teacher is None:
            raise UserError(
                f"only the teacher can say whose answers are in {self.folder}: StoredTeacher(folder, teacher)"
            )
        return self.teacher

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The teacher's classes, as it says itself or as it was recorded; None where nobody says."""
        if self.teacher is not None:
            return getattr(self.teacher, "classes", None)
        for path in sorted(self.folder.glob("*.json")):
            about = read_json(path)
            names = about.get("made from", {}).get("model", {}).get("classes") if isinstance(about, dict) else None
            if names:
                return tuple(names)
        return None

    def modules(self, batch: Batch, needs: list[str]) -> Any:
        """Parts of the teacher, which are not stored."""
        if needs and self.teacher is None:
            raise UserError(
                f"{', '.join(needs)}: a part of the teacher is not among its stored answers: give a teacher"
            )
        return self.teacher(batch, needs).modules if self.teacher and needs else {}

    def request(self, batch: Batch, needs: list[Need]) -> Request:
        """What is there for a batch, and what is missing, of needs with the same answers for perhaps other images."""
        need, variant = needs[0], variant_of(batch, needs[0])
        place = self.place(batch, need, variant)
        chosen = np.unique(np.concatenate([need.rows(batch) for need in needs]))
        records, valid = place.shelf.read(place.rows(batch, need, chosen))
        self.report_damage(place.shelf)
        return Request(need, place, chosen, records, np.flatnonzero(~valid))

    def fill(self, batch: Batch, requests: list[Request]) -> None:
        """Make the missing records; those of the same images are asked for together."""
        due: dict[tuple, list[Request]] = {}
        for request in requests:
            if len(request.missing):
                positions = request.chosen[request.missing]
                due.setdefault((request.need.of, positions.tobytes()), []).append(request)
        for together in due.values():
            positions = filled_up(batch, together[0])
            made = self.ask(batch, [request.need for request in together], positions)
            for request, (found, targets) in zip(together, made, strict=True):
                records = encoded(request.place, request.need, found, targets)
                request.place.shelf.write(request.place.rows(batch, request.need, positions), records)
                request.records[request.missing] = records[: len(request.missing)]
                self.recorded += len(records)

    def ask(self, batch: Batch, needs: list[Need], positions: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """What the teacher says of some images of a batch, on the host: values, and the classes that maps explain."""
        index = variant_of(batch, needs[0]).index[positions]
        if self.teacher is None:
            named = ", ".join(need.name for need in needs)
            raise UserError(
                f"{len(index)} answers to {named} are not in {self.folder}, the first of them of the image with index "
                f"{index[0]}, and there is no teacher to ask. Record them: {self.again}"
            )
        count = -(-len(positions) // TOGETHER) * TOGETHER
        seen = (batch.untransformed() if needs[0].of == "canonical" else batch).select(np.resize(positions, count))
        answer = self.teacher(seen, [need.question for need in needs])
        found = []
        for need in needs:
            kind = {
                "features": answer.features,
                "maps": answer.maps,
                "scores": answer.scores,
                "pruned": answer.pruned,
            }
            key = need.question if need.kind == "maps" else need.what
            made = answer.logits if need.kind == "logits" else kind[need.kind][key]
            assert made is not None, "a teacher gives what it is asked for"
            targets = answer.targets[key] if need.kind == "maps" else seen.labels
            made = made[: len(positions)].detach().float().cpu()
            check_finite(made, need, index)
            found.append((made, targets[: len(positions)].cpu()))
        return found

    def place(self, batch: Batch, need: Need, variant: Variant) -> OpenShelf:
        """The shelf for the pictures that a batch shows; other pictures are another shelf, or a refusal."""
        precision = None if self.teacher is None or need.exact else self.teacher.precision
        key = (need.name, precision, id(variant.split), variant.augment, variant.seed)
        if key not in self.opened:
            self.opened[key] = self.open(batch, need, variant)
        return self.opened[key]

    def open(self, batch: Batch, need: Need, variant: Variant) -> OpenShelf:
        """Open a shelf, or begin one.

        Raises:
            UserError: it was recorded from something else, or there is no room for what is to be written.
        """
        there = self.description(need)
        if self.teacher is None and there is None:
            raise UserError(f"no answers to {need.name} in {self.folder}. Record them: {self.again}")
        shape = tuple(there["shape"] if there else self.ask(batch, [need], np.arange(1))[0][0].shape[1:])
        as_written = there["made from"].get("written as") if there and self.teacher is None else None
        codec = codec_of(need, shape, maps={"byte": "uint8", "half": "float16"}.get(str(as_written), self.maps))
        target = [("target", "<i4")] if need.kind == "maps" else []
        written = {"written as": type(codec).__name__.lower()}
        made_from = {**self.made_by(need, there), **pictures(variant, need), **written}
        try:
            shelf = Shelf(self.folder, need.name, made_from, [*target, *codec.fields(shape)], variant.count, shape)
        except Different as error:
            raise UserError(
                f"{error}\nRecord them again: {self.again}\nOr keep both, in a folder each: "
                "teacher.answers=stored:path=..., or StoredTeacher(folder)"
            ) from None
        each, images = shelf.dtype.itemsize, len(variant.split)
        still = need.of == "canonical" or variant.augment is None or variant.augment.still
        times = 1 if still else self.variants
        whole = shelf.room(images) * times
        self.say(
            f"answers: {need.name}: {each} bytes an image × {images:,} images"
            f"{f' × {times} variants' if times > 1 else ''}: at most {readable(whole)} on the disk, of which "
            f"{readable(shelf.taken)} are in {self.folder}"
        )
        if self.teacher is not None:
            check_room(self.folder, max(0, whole - shelf.taken))
        return OpenShelf(shelf, codec, variant)

    def description(self, need: Need) -> dict[str, Any] | None:
        """What the JSON of a shelf says; None where there is none."""
        path = self.files(need)[1]
        try:
            there = read_json(path)
        except UserError as error:
            raise UserError(f"{error}\nOr record them again: {self.again}") from None
        if there is not None and not (isinstance(there, dict) and {"made from", "shape"} <= there.keys()):
            raise UserError(f"{path} does not say what its answers were made from. Record them again: {self.again}")
        return there

    def files(self, need: Need) -> tuple[Path, Path]:
        """The records of a need, and what they were made from."""
        return self.folder / f"{file_name(need.name)}.bin", self.folder / f"{file_name(need.name)}.json"

    def made_by(self, need: Need, there: dict[str, Any] | None) -> dict[str, Any]:
        """What the answers depend on, on the teacher's side: as it says itself, or as it was recorded."""
        if self.teacher is None:
            assert there is not None
            return {name: there["made from"][name] for name in ("model", "precision")}
        return {"model": self.teacher.identity, "precision": "float32" if need.exact else self.teacher.precision}

    def report_damage(self, shelf: Shelf) -> None:
        """Name the records whose sum was wrong; they are made again."""
        rows = list(shelf.damaged)[shelf.told :]
        if rows:
            named = ", ".join(shelf.name_of(row) for row in rows[:5])
            more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
            self.say(f"answers: damaged records in {shelf.path} ({named}{more}): not used, and recorded again")
            shelf.told = len(shelf.damaged)


def as_shown(batch: Batch, need: Need) -> Need:
    """What is asked of images that are shown as they are is asked of the canonical ones."""
    still = batch.variant is not None and batch.variant.number is None
    return replace(need, of="canonical") if still and need.kind != "module" else need


def variant_of(batch: Batch, need: Need) -> Variant:
    """Which pictures a batch shows.

    Raises:
        UserError: it does not say, so that nothing can be stored by it.
    """
    if batch.variant is None:
        raise UserError(
            f"{need.text}: this batch does not say which variant of which set it shows, so no answers can be stored by it. "
            "Batches of distilens.data do; build yours with Batch(variant=...)"
        )
    return batch.variant


def pictures(variant: Variant, need: Need) -> dict[str, Any]:
    """What the answers depend on, on the side of the images."""
    drawing = variant.drawing() if need.of == "images" else {}
    judge = build_judge(need.what) if need.kind == "scores" else None
    reads = judge.reads if judge else ("labels",) if need.target == "label" and need.kind == "maps" else ()
    labels = variant.labels() if "labels" in reads else {}
    masks = variant.evidence() if "masks" in reads else {}
    explainer = need.what if need.kind == "maps" else judge and judge.part
    reference = Spec.parse(explainer).options.get("data") if explainer else None
    compared = {"reference": load(reference).fingerprint} if reference and reference != "none" else {}
    return {**variant.set(), **drawing, **labels, **masks, **compared}


def filled_up(batch: Batch, request: Request) -> np.ndarray:
    """The positions of the images to ask about: those whose records are missing, then others of the batch without one."""
    missing, others = request.chosen[request.missing], np.setdiff1d(np.arange(len(batch)), request.chosen)
    there = request.place.shelf.read(request.place.rows(batch, request.need, others))[1]
    return np.concatenate([missing, others[~there][: -len(missing) % TOGETHER]])


def encoded(place: OpenShelf, need: Need, found: Tensor, targets: Tensor) -> np.ndarray:
    """Values as records, without their sums."""
    records = np.zeros(len(found), place.shelf.dtype)
    place.codec.encode(found, records)
    if need.kind == "maps":
        records["target"] = targets.numpy()
    return records


def values(batch: Batch, need: Need, request: Request) -> tuple[Tensor, Tensor]:
    """The answer in the records, on the batch's device, moved and in its place; and the classes that maps explain."""
    device, chosen = batch.images.device, need.rows(batch)
    records = request.records[np.searchsorted(request.chosen, chosen)]
    found = request.place.codec.decode(records, device)
    if need.kind != "maps":
        return found, batch.labels
    rows = sent(chosen, device)
    shown = moved(batch, need, found, rows if len(chosen) < len(batch) else None)
    return spread(batch, rows, shown), spread(batch, rows, sent(records["target"], device).long())


def live(teacher: Recordable, folder: Path, again: str, say: Callable[[str], object], variants: int) -> Recordable:
    """The teacher answers at every step."""
    return teacher


def stored(
    teacher: Recordable,
    folder: Path,
    again: str,
    say: Callable[[str], object],
    variants: int,
    *,
    path: str | None = None,
    maps: Literal["float16", "uint8"] = "float16",
) -> StoredTeacher:
    """Answers are recorded once, in `path` or beside the teacher's weights, and read from then on."""
    return StoredTeacher(path or folder, teacher, maps=maps, again=again, say=say, variants=variants)
