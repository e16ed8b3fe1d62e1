"""Each image follows the teacher that explains it best among those that are right, in everything, and it is said whom."""

from itertools import pairwise

import pytest
import torch

from distilens.core import Batch, Objective
from distilens.data import from_arrays
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.teachers import BestExplainedTeacher, LiveTeacher, MeanTeacher, RandomTeacher, StoredTeacher
from distilens.teachers.best_explained import choose_teacher
from distilens.teachers.needs import Need
from distilens.training.log import Log
from distilens.training.loop import train
from distilens.training.settings import Training

CANONICAL = "maps:gradcam:of=canonical"
NEEDS = ["logits", "features:last", "maps:gradcam", CANONICAL, f"{CANONICAL},share=0.5,draw=x", "scores:confidence"]


def plain(count: int = 6, **changes) -> Batch:
    changes = {"targets": torch.zeros(count, dtype=torch.long), "index": torch.arange(count), **changes}
    return Batch(torch.rand(len(changes["targets"]), 3, 16, 16), **changes)


def test_each_image_has_all_its_answers_of_one_teacher(said):
    first, second, third = (
        said(number=1, scores={0: 0.9, 1: 0.1, 2: 0.5, 3: 0.4}),
        said(number=2, scores={0: 0.8, 1: 0.2, 2: 0.5, 3: 0.9}, right={3: False}),
        said(number=3, scores={0: 0.7, 1: 0.3, 2: 0.4, 3: 0.1}, grid=8),
    )
    teacher = BestExplainedTeacher([first, second, third], judge="confidence")
    batch = plain(4)
    answer = teacher(batch, NEEDS)
    followed = [1, 3, 1, 1]  # of equals the first; of the last image the best is wrong
    expected = torch.tensor(followed) + torch.arange(4) / 1000
    assert torch.equal(answer.logits, expected[:, None].expand(4, 3))
    assert torch.equal(answer.features["last"][:, 0, 0, 0], expected)
    assert torch.equal(answer.maps["maps:gradcam"][:, 3, 3], expected)
    assert answer.maps["maps:gradcam"].shape == (4, 4, 4)
    assert answer.maps["maps:gradcam"][1, 0, 0].item() == pytest.approx(expected[1].item() + 0.25)  # one of four cells
    assert answer.targets["maps:gradcam"].tolist() == followed
    drawn = (batch.draw("x")[:, 0] < 0.5).long()
    assert 0 < drawn.sum() < 4
    assert answer.targets[NEEDS[4]].tolist() == (torch.tensor(followed) * drawn).tolist()
    assert answer.scores["confidence"].tolist() == pytest.approx([0.9, 0.3, 0.5, 0.4])
    assert answer.trust.tolist() == [1, 1, 1, 1]
    assert answer.modules == {}


def test_the_gate(said):
    scores = {0: 0.9, 1: 0.9, 2: 0.9}
    right = {0: False, 1: False, 2: False}
    labels = torch.tensor([0, 0, -1])
    batch = plain(targets=labels, index=torch.arange(3))
    good, other = said(number=1, scores=scores, right=right), said(number=2, right={0: True, 1: False, 2: False})
    answer = BestExplainedTeacher([good, other], judge="confidence")(batch, ["logits"])
    assert answer.trust.tolist() == [1, 0, 1]  # right; all are wrong; nobody can say
    assert answer.logits[:, 0].round().tolist() == [2, 1, 1]
    assert answer.logits.isfinite().all()
    answer = BestExplainedTeacher([good, other], judge="confidence", gate=False)(batch, ["logits"])
    assert answer.trust.tolist() == [1, 1, 1]
    assert answer.logits[:, 0].round().tolist() == [1, 1, 1]
    assert all("scores:correct" not in needs for needs in good.asked[-2:])


def test_trust_of_teachers_counts(said):
    inner = BestExplainedTeacher(
        [said(number=1, right={0: False}), said(number=2, right={0: False})], judge="confidence"
    )
    teacher = BestExplainedTeacher([inner, said(number=3, scores={1: -1.0})], judge="confidence", gate=False)
    answer = teacher(plain(3), ["logits"])
    assert answer.trust.tolist() == [0, 1, 1]
    assert answer.logits[:, 0].round().tolist() == [1, 1, 1]


def test_tau_draws_by_the_softmax_among_the_right_ones(said):
    right = dict.fromkeys(range(1000, 2000), False)
    teachers = [
        said(number=1, scores=dict.fromkeys(range(4000), 0.9)),
        said(number=2, scores=dict.fromkeys(range(4000), 0.5), right=right),
        said(number=3),
    ]
    tau = 0.7
    teacher = BestExplainedTeacher(teachers, judge="confidence", tau=tau)
    batch = Batch(torch.zeros(4000, 3, 2, 2), torch.zeros(4000, dtype=torch.long), torch.arange(4000))

    def followed(epoch):
        given = batch.replaced(epoch=epoch)
        return teacher(given, ["maps:gradcam"]).targets["maps:gradcam"]

    first, second = followed(0), followed(1)
    for some, scores in ((torch.arange(2000, 4000), [0.9, 0.5, 0.0]), (torch.arange(1000, 2000), [0.9, -1e9, 0.0])):
        shares = first[some].bincount(minlength=4)[1:] / len(some)
        assert torch.allclose(shares, (torch.tensor(scores) / tau).softmax(0), atol=0.04)
    assert not torch.equal(first, second) and torch.equal(first, followed(0))
    assert (first == teacher(batch.select(torch.arange(4000)), ["maps:gradcam"]).targets["maps:gradcam"]).all()
    with pytest.raises(UserError, match="draws a teacher in each epoch, so its answers cannot be stored"):
        teacher.identity  # noqa: B018


def test_nobody_without_a_share_is_ever_drawn():
    allowed = torch.tensor([[False, True, False, True, False]])
    scores = torch.tensor([[9.0, 0.0, 9.0, -3.0, 9.0]])
    for drawn in (0.0, 0.5, 1 - 2.0**-24):
        one = choose_teacher(scores, allowed, 0.1, torch.tensor([drawn]))
        assert one.item() in (1, 3), drawn
    assert choose_teacher(scores, allowed, None, None).item() == 1
    assert choose_teacher(scores, allowed & False, None, None).item() == 0


@pytest.mark.parametrize("judge", ["insertion:steps=2", "consensus", "focus:explainer=cam"])
def test_a_live_teacher_is_judged_once_and_the_best_is_followed(shapes, live_of, batches_of, judge, monkeypatch):
    teachers = [live_of(shapes, seed, stride=1 + seed % 2) for seed in range(3)]
    best = BestExplainedTeacher(teachers, judge=judge, gate=False)
    asked: list[tuple[str, ...]] = []
    was = LiveTeacher.__call__

    def noted(self, batch, needs):
        asked.append(tuple(needs))
        return was(self, batch, needs)

    monkeypatch.setattr(LiveTeacher, "__call__", noted)
    loaded = batches_of(shapes)
    batch = next(loaded.epoch(0))
    answer = best(batch, ["logits", CANONICAL])
    scores = best.judge.compare([was(each, batch.untransformed(), best.asked) for each in teachers])
    assert torch.allclose(best.known(batch)[:, :3], scores, atol=1e-5)
    followed = scores.argmax(1)
    assert len(followed.unique()) > 1
    for each, teacher in enumerate(teachers):
        rows = followed == each
        own = was(teacher, batch, ["logits"])
        assert torch.allclose(answer.logits[rows], own.logits[rows], atol=1e-5)
    assert answer.maps[CANONICAL].shape == (12, 8, 8)
    first = len(asked)
    assert first == 6
    positions = torch.from_numpy(loaded.split.index.searchsorted(batch.variant.index))
    best(loaded.batch(positions, None, 1, 0.0), ["logits"])
    assert asked[first:] == [("logits",)] * 3


def test_two_shares_of_a_batch_say_what_the_whole_says(shapes, live_of, batches_of):
    def teacher():
        return BestExplainedTeacher([live_of(shapes, seed) for seed in range(2)], judge="focus", tau=0.1)

    batch = next(batches_of(shapes).epoch(3))
    whole = teacher()(batch, NEEDS[:5])
    for rank in (0, 1):
        share = next(batches_of(shapes, rank=rank, world=2).epoch(3))
        part = teacher()(share, NEEDS[:5])
        rows = torch.arange(rank, 12, 2)
        assert torch.equal(share.index, batch.index[rows])
        assert torch.allclose(part.logits, whole.logits[rows], atol=1e-5)
        assert torch.equal(part.trust, whole.trust[rows])
        for need, maps in part.maps.items():
            assert torch.allclose(maps, whole.maps[need][rows], atol=1e-5)
            assert torch.equal(part.targets[need], whole.targets[need][rows])


def test_stored_teachers_are_followed_as_live_ones_are_and_can_be_stored_as_one(tmp_path, shapes, live_of, batches_of):
    teachers = [live_of(shapes, seed) for seed in range(2)]
    live = BestExplainedTeacher(teachers, judge="insertion:steps=3")
    stored = BestExplainedTeacher(
        [StoredTeacher(tmp_path / str(place), each) for place, each in enumerate(teachers)], judge="insertion:steps=3"
    )
    outer = StoredTeacher(tmp_path / "best", stored)
    assert outer.classes == stored.classes == tuple(shapes.classes)
    needs = ["logits", CANONICAL, "scores:confidence"]
    for batch in list(batches_of(shapes).epoch(0))[:2]:
        ours, theirs, kept = stored(batch, needs), live(batch, needs), outer(batch, needs)
        for each in (ours, kept):
            assert torch.allclose(each.logits, theirs.logits, rtol=1e-2, atol=1e-2)
            assert torch.allclose(each.maps[CANONICAL], theirs.maps[CANONICAL], rtol=1e-2, atol=1e-3)
            assert torch.equal(each.targets[CANONICAL], theirs.targets[CANONICAL])
            assert torch.allclose(each.scores["confidence"], theirs.scores["confidence"], atol=1e-4)
        assert torch.equal(ours.trust, theirs.trust)
    other = BestExplainedTeacher(teachers, judge="insertion:steps=4")
    with pytest.raises(UserError, match="steps=3"):
        StoredTeacher(tmp_path / "best", other)(batch, needs)
    assert StoredTeacher(tmp_path / "best").classes == tuple(shapes.classes)
    assert StoredTeacher(tmp_path / "nothing").classes is None


def test_whom_images_followed_is_counted_once_an_epoch(shapes, batches_of, said):
    loaded = batches_of(shapes, 24)
    images = len(loaded) * 24
    third = set(range(0, 80, 3))
    right = dict.fromkeys(third, False)
    teachers = [said(number=1, right=right), said(number=2, scores={1: 1.0, 2: 1.0}, right=right)]
    hard = BestExplainedTeacher(teachers, judge="confidence")
    seen: dict[int, int] = {}
    for epoch in range(2):
        hard(next(loaded.epoch(epoch)), ["logits"])  # as a training does before its first step
        shown = []
        for batch in loaded.epoch(epoch):
            hard(batch, ["logits"])
            shown += batch.index.tolist()
        counts = {"follow/none": len(third & {*shown}), "follow/2": len({1, 2} & {*shown})}
        notes = hard.notes()
        assert notes["follow/none"] == pytest.approx(counts["follow/none"] / images)
        assert notes["follow/2"] == pytest.approx(counts["follow/2"] / images)
        assert sum(notes[f"follow/{name}"] for name in (1, 2, "none")) == pytest.approx(1)
        assert notes["follow/switched"] == 0
    soft = RandomTeacher(teachers)
    for epoch in range(3):
        switched, again = 0, 0
        for batch in loaded.epoch(epoch):
            followed = (soft(batch, ["maps:gradcam"]).targets["maps:gradcam"]).tolist()
            for index, now in zip(batch.index.tolist(), followed, strict=True):
                again += index in seen
                switched += seen.get(index, now) != now
                seen[index] = now
        notes = soft.notes()
        assert notes["follow/switched"] == pytest.approx(switched / max(again, 1))
        assert (epoch == 0) == (switched == 0)
    fresh = RandomTeacher(teachers)  # as after a resume
    fresh(next(loaded.epoch(3)), ["logits"])
    assert fresh.notes()["follow/switched"] == 0


def test_the_notes_are_in_the_log_of_a_training(shapes, live_of):
    teacher = BestExplainedTeacher([live_of(shapes, seed) for seed in range(2)], judge="focus")
    settings = Training(epochs=2, batch_size=36, precision="float32")
    log = Log()
    student = live_of(shapes, 5).model.requires_grad_(True)
    train(student, build_methods(["kd", "map_match:of=canonical"]), shapes, settings, teacher=teacher, log=log)
    notes = [row["notes"] for row in log.rows if "notes" in row]
    assert len(notes) == 2
    for each in notes:
        assert each["follow/1"] + each["follow/2"] + each["follow/none"] == pytest.approx(1)
        assert "map_match/empty maps" in each


def test_an_image_that_nobody_gets_right_teaches_nothing(shapes, live_of, batches_of, said):
    teachers = [said(number=each, right={}, channels=8) for each in (1, 2)]
    batch = next(batches_of(shapes).epoch(0))
    for each in teachers:
        each.right = dict.fromkeys(batch.index.tolist()[:11], False)
    teacher = BestExplainedTeacher(teachers, judge="confidence")
    objective = Objective(live_of(shapes).model.requires_grad_(True), build_methods(["map_match:distance=l2"]))
    objective.prepare(batch, teacher(batch, objective.needs))
    (loss,) = objective(batch, teacher(batch, objective.needs)).values()
    (own,) = objective(
        batch.select(torch.tensor([11])), teacher(batch.select(torch.tensor([11])), objective.needs)
    ).values()
    assert loss.item() == pytest.approx(own.item() / 12, rel=1e-4)


def test_what_cannot_be_joined_is_refused(shapes, live_of, batches_of, said):
    one, two = said(classes=("a", "b", "c")), said(classes=("a", "c", "b"))
    with pytest.raises(
        UserError, match=r"teacher 2 has the classes of teacher 1 in another order: a, c, b, not a, b, c"
    ):
        BestExplainedTeacher([one, two])
    with pytest.raises(UserError, match="teacher 3 has 2 classes, teacher 1 3"):
        MeanTeacher([one, said(), said(classes=("a", "b"))])
    with pytest.raises(UserError, match="other classes than teacher 1: a, b, d"):
        RandomTeacher([one, said(classes=("a", "b", "d"))])
    with pytest.raises(UserError, match="best_explained takes at least two teachers; given 1"):
        BestExplainedTeacher([one])
    with pytest.raises(UserError, match=r"unknown judge 'insert'\. Did you mean 'insertion'"):
        BestExplainedTeacher([one, one], judge="insert")
    drawing = RandomTeacher([one, one])
    for kind in (BestExplainedTeacher, RandomTeacher):
        with pytest.raises(UserError, match="teacher 2 itself draws a teacher"):
            kind([one, MeanTeacher([one, drawing])])
    with pytest.raises(UserError, match="draws a teacher in each epoch"):
        MeanTeacher([one, drawing]).identity  # noqa: B018
    batch = plain()
    for teacher in (BestExplainedTeacher([one, one], judge="confidence"), MeanTeacher([one, one])):
        with pytest.raises(UserError, match="module:fc: a part of one teacher"):
            teacher(batch, ["module:fc"])
        with pytest.raises(UserError, match=r"features:last: .* have the shapes \[2, 4, 4\], \[3, 4, 4\]"):
            type(teacher)([one, said(channels=3)])(batch, ["features:last"])
    with pytest.raises(UserError, match="does not identify the teacher"):
        BestExplainedTeacher([StoredTeacher("a"), StoredTeacher("b")]).identity  # noqa: B018


def test_a_judge_of_masks_needs_masks(live_of, batches_of):
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8).numpy()
    data = from_arrays(images, [0, 1] * 20)
    teacher = BestExplainedTeacher([live_of(data, seed) for seed in range(2)], judge="energy_in_mask")
    with pytest.raises(UserError, match="these data have no masks"):
        teacher.check(data)
    student = live_of(data, 3).model.requires_grad_(True)
    before = student.network[0].weight.clone()
    with pytest.raises(UserError, match="these data have no masks"):
        train(student, build_methods(["kd"]), data, Training(epochs=1, batch_size=8), teacher=teacher)
    assert torch.equal(before, student.network[0].weight)


def test_at_use_the_live_teachers_answer(tmp_path, shapes, live_of):
    teachers = [live_of(shapes, seed) for seed in range(2)]
    stored = BestExplainedTeacher(
        [StoredTeacher(tmp_path / str(place), each) for place, each in enumerate(teachers)], judge="focus"
    )
    unknown = torch.full((4,), -1)
    answer = stored.live()(Batch(torch.rand(4, 3, 16, 16), unknown, unknown), ["logits", "maps:gradcam"])
    assert answer.logits.isfinite().all() and answer.trust.tolist() == [1, 1, 1, 1]
    assert stored.live().identity == stored.identity


def test_needs_asked_of_each_are_parsed_needs(said):
    teacher = BestExplainedTeacher([said(), said(), said()], judge="consensus")
    asked = teacher.asks([Need.parse("logits")])
    assert [need.kind for need in asked] == ["maps", "scores"]
    assert all(a.name != b.name for a, b in pairwise(asked))
    assert teacher(plain(), []).trust is None
