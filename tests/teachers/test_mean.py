"""The mean of teachers is the mean of their logits and of maps of equal strength; a random one is any of them."""

import pytest
import torch

from distilens.core import Batch
from distilens.explain.maps import strength
from distilens.teachers import MeanTeacher, RandomTeacher, StoredTeacher
from distilens.teachers.needs import Need

CANONICAL = "maps:gradcam:of=canonical"


def test_the_mean_of_logits_features_and_scores(said):
    teachers = [said(number=1, scores={0: 0.5}), said(number=4, scores={0: 1.0})]
    batch = Batch(torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.long), torch.arange(3))
    answer = MeanTeacher(teachers)(batch, ["logits", "features:last", "scores:confidence"])
    expected = 2.5 + torch.arange(3) / 1000
    assert torch.allclose(answer.logits, expected[:, None].expand(3, 3))
    assert torch.allclose(answer.features["last"][:, 1, 2, 3], expected)
    assert answer.scores["confidence"].tolist() == [0.75, 0, 0]
    assert answer.trust is None and answer.maps == {}


def test_maps_weigh_the_same_whatever_their_scale_and_grid(said):
    weak, strong = said(number=1, grid=2), said(number=1000, grid=4)
    batch = Batch(torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.long), torch.arange(3))
    found = MeanTeacher([weak, strong])(batch, ["maps:gradcam:target=label"]).maps["maps:gradcam:target=label"]
    assert found.shape == (3, 2, 2)
    coarse, fine = (each(batch, ["maps:gradcam"]).maps["maps:gradcam"] for each in (weak, strong))
    assert torch.allclose(found, (strength(coarse) + strength(fine.unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4)))) / 2)


@pytest.mark.parametrize("asked", [[], ["logits"], ["logits:top=2"]])
def test_the_target_is_the_first_class_of_the_mean_logits(shapes, live_of, batches_of, asked):
    teachers = [live_of(shapes, seed) for seed in range(3)]
    teacher = MeanTeacher(teachers)
    maps = ["maps:gradcam", CANONICAL, f"{CANONICAL},share=0.5,draw=x", f"{CANONICAL},target=label"]
    maps += ["maps:gradcam:every=2,pool=2", "maps:gradcam:classes=all"]
    batch = next(batches_of(shapes, augment="resized_crop:area=[0.1,0.3]").epoch(1)).replaced(step=1)
    answer = teacher(batch, [*asked, *maps])

    def first(shown):
        return torch.stack([each(shown, ["logits"]).logits for each in teachers]).mean(0).argmax(1)

    own = torch.stack([each(batch, ["logits"]).logits.argmax(1) for each in teachers])
    assert (own != own[0]).any(), "the teachers agree, so the test would prove nothing"
    assert (first(batch) != first(batch.untransformed())).any()
    assert torch.equal(answer.targets[maps[0]], first(batch))
    assert torch.equal(answer.targets[maps[1]], first(batch.untransformed()))
    drawn = batch.draw("x")[:, 0] < 0.5
    assert torch.equal(answer.targets[maps[2]], answer.targets[maps[1]] * drawn)
    assert torch.equal(answer.targets[maps[3]], batch.labels)
    assert not answer.targets[maps[4]].any() and answer.maps[maps[4]].shape == (12, 2, 2)
    assert answer.maps[maps[5]].shape == (12, 8, 8, 8)
    assert (answer.logits is None) == (asked == [])


def test_what_is_asked_beside_is_said_ahead(tmp_path, shapes, live_of, batches_of):
    teachers = [StoredTeacher(tmp_path / str(seed), live_of(shapes, seed)) for seed in range(2)]
    teacher = MeanTeacher(teachers)
    batch = next(batches_of(shapes).epoch(0))
    needs = [CANONICAL, "maps:gradcam", "maps:gradcam:target=label"]
    teacher(batch, needs)
    shelves = {
        each.place.shelf.name for each in [one.request(batch, [Need.parse(n)]) for one in teachers for n in needs]
    }
    there = {need.name for need in teacher.asks([Need.parse(need) for need in needs])}
    assert there == {"logits", "logits:of=canonical"}
    assert {key[0] for each in teachers for key in each.opened} == shelves | there


def test_a_random_teacher_is_each_of_them_as_often(said):
    teacher = RandomTeacher([said(number=each) for each in (1, 2, 3)])
    batch = Batch(torch.rand(3000, 3, 2, 2), torch.zeros(3000, dtype=torch.long), torch.arange(3000))
    first, second = (teacher(batch.replaced(epoch=epoch), ["logits", "maps:gradcam"]) for epoch in (0, 1))
    followed = first.targets["maps:gradcam"]
    assert torch.equal(first.logits[:, 0], followed + torch.arange(3000) / 1000)
    assert torch.allclose(followed.bincount(minlength=4)[1:] / 3000, torch.full((3,), 1 / 3), atol=0.03)
    same = (followed == second.targets["maps:gradcam"]).float().mean()
    assert same.item() == pytest.approx(1 / 3, abs=0.04)
    assert first.trust is None


def test_counts_of_teachers_inside_are_told_apart(shapes, batches_of, said):
    inner = RandomTeacher([said(number=1), said(number=2)])
    teacher = MeanTeacher([said(number=3), inner])
    teacher(next(batches_of(shapes).epoch(0)), ["logits"])
    assert set(teacher.notes()) == {"2/follow/1", "2/follow/2", "2/follow/none", "2/follow/switched"}


def test_who_is_asked_nothing_asks_nobody(said):
    teachers = [said(number=1), said(number=2)]
    batch = Batch(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), torch.arange(2))
    answer = MeanTeacher(teachers)(batch, [])
    assert (answer.logits, answer.maps, answer.features, answer.scores) == (None, {}, {}, {})
    assert [teacher.asked for teacher in teachers] == [[], []]


def test_a_random_teacher_asks_for_nothing_beside_and_has_followed_nobody_at_first(said):
    teacher = RandomTeacher([said(number=1), said(number=2)])
    assert teacher.asks([Need.parse("maps:gradcam")]) == []
    assert teacher.notes() == {}
