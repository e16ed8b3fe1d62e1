"""Stored answers of a teacher: recorded answers are read; the teacher computes and records the missing ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from distilens.core import Answer, Batch, Teacher
from distilens.data import load
from distilens.data.variant import Variant
from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json, readable
from distilens.foundation.notation import Spec
from distilens.tasks import NOWHERE, VOID
from distilens.teachers.codecs import Codec, check_finite, codec_of, sent
from distilens.teachers.judges import build_judge
from distilens.teachers.needs import Need, make_answer, moved, moved_target, of_kind, read_needs, spread
from distilens.teachers.records import Different, Shelf, check_room, file_name

TOGETHER = 16
"""Answers are computed in batches of a multiple of this number, so that their bytes do not depend on the batch.

(On a CPU a batch of 1, 7 or 127 uses other kernels, with differences in the last bit of float32.) The batch is filled up with
other images that have no record yet, then with repeats."""


@dataclass
class OpenShelf:
    """An open shelf, with its codec and the variant that it was opened for."""

    shelf: Shelf
    codec: Codec
    variant: Variant

    def rows(self, batch: Batch, need: Need, positions: np.ndarray) -> np.ndarray:
        """The record numbers of some images of a batch."""
        variant = variant_of(batch, need)
        return self.shelf.rows(variant.index[positions], None if need.of == "canonical" else variant.number)


@dataclass
class Request:
    """The records of a shelf for a batch.

    Attributes:
        need: the need that they answer; other needs with the same shelf may ask for other images.
        place: the shelf.
        chosen: the positions in the batch of the requested images, sorted.
        records: their records.
        missing: which of the records must still be made.
    """

    need: Need
    place: OpenShelf
    chosen: np.ndarray
    records: np.ndarray
    missing: np.ndarray


class StoredTeacher(Teacher):
    """A teacher that reads its answers from a folder and records the missing ones.

    Logits and features are stored per variant of an image. Maps and scores `of=canonical` are stored once per image; the maps are
    then moved with the image. Records from another teacher, explainer, data set or augmentation are refused. The answers equal
    those of the teacher itself, for the same variants, up to float16 rounding.

    Args:
        folder: the folder of the records.
        teacher: computes missing answers; with None, records are only read.
        maps: the type of stored maps: `float16` (11 bits) or `uint8` (256 levels between each map's smallest and largest value).
        again: the command that records, for messages.
        say: receives lines of text, such as the size of the records.
        variants: the expected number of variants per image, to estimate the disk space.
    """

    def __init__(
        self,
        folder: str | Path,
        teacher: Teacher | None = None,
        *,
        maps: Literal["float16", "uint8"] = "float16",
        again: str | None = None,
        say: Callable[[str], object] = lambda text: None,
        variants: int = 1,
    ):
        self.folder, self.teacher, self.maps = Path(folder), teacher, maps
        self.again = again or (
            "delete that folder" if teacher else "StoredTeacher(folder, teacher) records when it is called"
        )
        self.say, self.variants = say, variants
        self.opened: dict[tuple, OpenShelf] = {}
        self.recorded = 0  # the number of answers that the teacher computed

    def __repr__(self) -> str:
        return f"StoredTeacher({str(self.folder)!r}, {self.teacher!r})"

    def __call__(self, batch: Batch, needs: Sequence[str]) -> Answer:
        wanted = [as_shown(batch, need) for need in read_needs(needs)]
        read = [need for need in wanted if need.kind != "module"]
        shelves: dict[str, list[Need]] = {}
        for need in read:
            shelves.setdefault(need.name, []).append(need)
        requests = {name: self.request(batch, together) for name, together in shelves.items()}
        self.fill(batch, list(requests.values()))
        answers = {need: value(batch, need, requests[need.name]) for need in read}
        return make_answer(answers | self.modules(batch, of_kind(wanted, "module")))

    @property
    def identity(self) -> dict[str, Any]:
        return self.asked.identity

    @property
    def precision(self) -> str:  # type: ignore[override]
        return self.asked.precision

    def live(self) -> Teacher:
        return self if self.teacher is None else self.teacher.live()

    @property
    def asked(self) -> Teacher:
        """The teacher whose answers are stored."""
        if self.teacher is None:
            raise UserError(
                f"{self.folder} alone does not identify the teacher of its answers: use StoredTeacher(folder, teacher)"
            )
        return self.teacher

    @property
    def classes(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """The classes of the teacher, or those in the records; None if neither has them."""
        if self.teacher is not None:
            return self.teacher.classes
        for path in sorted(self.folder.glob("*.json")):
            about = read_json(path)
            names = about.get("made from", {}).get("model", {}).get("classes") if isinstance(about, dict) else None
            if names:
                return tuple(names)
        return None

    def modules(self, batch: Batch, needs: list[Need]) -> dict[Need, Any]:
        """Modules of the teacher, which are not stored."""
        if not needs:
            return {}
        texts = [need.text for need in needs]
        if self.teacher is None:
            raise UserError(
                f"{', '.join(texts)}: a part of the teacher is not among its stored answers: pass a teacher"
            )
        answer = self.teacher(batch, texts)
        return {need: need.read(answer) for need in needs}

    def request(self, batch: Batch, needs: list[Need]) -> Request:
        """Read the records for a batch. The needs read the same shelf, but may ask for different images."""
        need, variant = needs[0], variant_of(batch, needs[0])
        place = self.place(batch, need, variant)
        chosen = np.unique(np.concatenate([need.rows(batch) for need in needs]))
        records, valid = place.shelf.read(place.rows(batch, need, chosen))
        self.report_damage(place.shelf)
        return Request(need, place, chosen, records, np.flatnonzero(~valid))

    def fill(self, batch: Batch, requests: list[Request]) -> None:
        """Make the missing records. The teacher is asked once for all needs of the same images."""
        due: dict[tuple, list[Request]] = {}
        for request in requests:
            if len(request.missing):
                positions = request.chosen[request.missing]
                due.setdefault((request.need.of, positions.tobytes()), []).append(request)
        for together in due.values():
            positions = filled_up(batch, together[0])
            made = self.ask(batch, [request.need for request in together], positions)
            for request, (answers, targets) in zip(together, made, strict=True):
                records = encoded(request.place, request.need, answers, targets)
                request.place.shelf.write(request.place.rows(batch, request.need, positions), records)
                request.records[request.missing] = records[: len(request.missing)]
                self.recorded += len(records)

    def ask(self, batch: Batch, needs: list[Need], positions: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """The teacher's answers for some images of a batch, on the host: values, and the classes that maps explain."""
        index = variant_of(batch, needs[0]).index[positions]
        if self.teacher is None:
            named = ", ".join(need.name for need in needs)
            raise UserError(
                f"{len(index)} answers to {named} are not in {self.folder}, the first of them for the image with index "
                f"{index[0]}, and there is no teacher to ask. Record them: {self.again}"
            )
        count = -(-len(positions) // TOGETHER) * TOGETHER
        seen = (batch.untransformed() if needs[0].of == "canonical" else batch).select(np.resize(positions, count))
        questions = [Need.parse(need.question) for need in needs]
        answer = self.teacher(seen, [question.text for question in questions])
        answers = []
        for need, question in zip(needs, questions, strict=True):
            made = question.read(answer)[: len(positions)].detach().float().cpu()
            targets = answer.targets[question.text] if need.kind == "maps" else seen.targets
            check_finite(made, need, index)
            answers.append((made, targets[: len(positions)].cpu()))
        return answers

    def place(self, batch: Batch, need: Need, variant: Variant) -> OpenShelf:
        """The shelf for the variant that a batch shows. Another variant has another shelf, or is refused."""
        precision = None if self.teacher is None or need.exact else self.teacher.precision
        key = (need.name, precision, id(variant.split), variant.augment, variant.seed)
        if key not in self.opened:
            self.opened[key] = self.open(batch, need, variant)
        return self.opened[key]

    def open(self, batch: Batch, need: Need, variant: Variant) -> OpenShelf:
        """Open a shelf, or create it.

        Raises:
            UserError: the shelf was recorded from different inputs, or the disk does not have enough space.
        """
        there = self.description(need)
        if self.teacher is None and there is None:
            raise UserError(f"no answers to {need.name} in {self.folder}. Record them: {self.again}")
        if there:
            first, shape = None, tuple(there["shape"])
        else:
            first = self.ask(batch, [need], np.arange(1))[0]
            shape = tuple(first[0].shape[1:])
        as_written = there["made from"].get("written as") if there and self.teacher is None else None
        codec = codec_of(need, shape, maps={"byte": "uint8", "half": "float16"}.get(str(as_written), self.maps))
        target = [("target", *target_field(there, first))] if need.kind == "maps" else []
        written = {"written as": type(codec).__name__.lower()}
        made_from = {**self.made_by(need, there), **pictures(variant, need), **written}
        try:
            shelf = Shelf(self.folder, need.name, made_from, [*target, *codec.fields(shape)], variant.count, shape)
        except Different as error:
            raise UserError(
                f"{error}\nRecord them again: {self.again}\nOr keep both, in separate folders: "
                "teacher.answers=stored:path=..., or StoredTeacher(folder)"
            ) from None
        size, images = shelf.dtype.itemsize, len(variant.split)
        still = need.of == "canonical" or variant.augment is None or variant.augment.still
        times = 1 if still else self.variants
        whole = shelf.room(images) * times
        self.say(
            f"answers: {need.name}: {size} bytes per image × {images:,} images"
            f"{f' × {times} variants' if times > 1 else ''}: at most {readable(whole)} on the disk; "
            f"{readable(shelf.taken)} are already in {self.folder}"
        )
        if self.teacher is not None:
            check_room(self.folder, max(0, whole - shelf.taken))
        return OpenShelf(shelf, codec, variant)

    def description(self, need: Need) -> dict[str, Any] | None:
        """The content of a shelf's JSON; None if it does not exist."""
        path = self.files(need)[1]
        try:
            there = read_json(path)
        except UserError as error:
            raise UserError(f"{error}\nOr record them again: {self.again}") from None
        if there is not None and not (isinstance(there, dict) and {"made from", "shape"} <= there.keys()):
            raise UserError(f"{path} does not say how its answers were made. Record them again: {self.again}")
        return there

    def files(self, need: Need) -> tuple[Path, Path]:
        """The paths of a need's records and of their JSON."""
        return self.folder / f"{file_name(need.name)}.bin", self.folder / f"{file_name(need.name)}.json"

    def made_by(self, need: Need, there: dict[str, Any] | None) -> dict[str, Any]:
        """What the answers depend on, on the teacher's side: from the teacher, or else from the records."""
        if self.teacher is None:
            assert there is not None
            return {name: there["made from"][name] for name in ("model", "precision")}
        return {"model": self.teacher.identity, "precision": "float32" if need.exact else self.teacher.precision}

    def report_damage(self, shelf: Shelf) -> None:
        """Report the records whose check sum was wrong. They are made again."""
        rows = list(shelf.damaged)[shelf.told :]
        if rows:
            named = ", ".join(shelf.name_of(row) for row in rows[:5])
            more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
            self.say(f"answers: damaged records in {shelf.path} ({named}{more}): not used, and recorded again")
            shelf.told = len(shelf.damaged)


def as_shown(batch: Batch, need: Need) -> Need:
    """The need as asked for what the batch shows: for untransformed images it becomes `of=canonical`."""
    still = batch.variant is not None and batch.variant.number is None
    return replace(need, of="canonical") if still and need.kind != "module" else need


def variant_of(batch: Batch, need: Need) -> Variant:
    """The variant that a batch shows.

    Raises:
        UserError: the batch does not name its variant, so its answers cannot be stored.
    """
    if batch.variant is None:
        raise UserError(
            f"{need.text}: this batch does not say which variant of which set it shows, so its answers cannot be stored. "
            "Batches of distilens.data do; build yours with Batch(variant=...)"
        )
    return batch.variant


def pictures(variant: Variant, need: Need) -> dict[str, Any]:
    """What the answers depend on, on the images' side."""
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
    """The positions of the images to compute: those with missing records, then others of the batch without a record."""
    missing, others = request.chosen[request.missing], np.setdiff1d(np.arange(len(batch)), request.chosen)
    there = request.place.shelf.read(request.place.rows(batch, request.need, others))[1]
    return np.concatenate([missing, others[~there][: -len(missing) % TOGETHER]])


def encoded(place: OpenShelf, need: Need, answers: Tensor, targets: Tensor) -> np.ndarray:
    """The answers as records, without their check sums."""
    records = np.zeros(len(answers), place.shelf.dtype)
    place.codec.encode(answers, records)
    if need.kind == "maps":  # where a byte has no -1, 255 stands for it
        records["target"] = targets.numpy().astype(records["target"].dtype)
    return records


def target_field(there: dict[str, Any] | None, first: tuple[Tensor, Tensor] | None) -> tuple:
    """The type and shape of what maps explain: a class; in a dense task its places, in bytes."""
    if first is None:
        assert there is not None
        kind, shape = next((kind, tuple(shape)) for name, kind, shape in there["record"] if name == "target")
        return kind, shape
    places = tuple(first[1].shape[1:])
    return ("u1", places) if places else ("<i4",)


def value(batch: Batch, need: Need, request: Request) -> Any:
    """The answers in the records, on the batch's device and at their positions; for maps also the classes explained."""
    device, chosen = batch.images.device, need.rows(batch)
    records = request.records[np.searchsorted(request.chosen, chosen)]
    answers = request.place.codec.decode(records, device)
    if need.kind != "maps":
        return answers
    rows = sent(chosen, device)
    shown = moved(batch, need, answers, rows if len(chosen) < len(batch) else None)
    target = sent(records["target"], device).long()
    if target.ndim > 1:
        target = target.masked_fill(target == VOID, NOWHERE)
    target = moved_target(batch, need, target, rows if len(chosen) < len(batch) else None)
    return spread(batch, rows, shown), spread(batch, rows, target)


def live(teacher: Teacher, folder: Path, again: str, say: Callable[[str], object], variants: int) -> Teacher:
    """The teacher answers at every step."""
    return teacher


def stored(
    teacher: Teacher,
    folder: Path,
    again: str,
    say: Callable[[str], object],
    variants: int,
    *,
    path: str | None = None,
    maps: Literal["float16", "uint8"] = "float16",
) -> StoredTeacher:
    """Answers are recorded once, in `path` or next to the teacher's weights, and then read."""
    return StoredTeacher(path or folder, teacher, maps=maps, again=again, say=say, variants=variants)
