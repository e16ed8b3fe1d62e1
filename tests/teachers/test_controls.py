"""Each control takes one thing from the answers, and nothing else."""

from dataclasses import replace

import pytest
import torch

from distilens.core import Batch, Objective
from distilens.explain.gradcam import GradCAM
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.teachers import (
    CONTROLS,
    BestExplainedTeacher,
    LiveTeacher,
    MisregisteredTeacher,
    PermutedTeacher,
    RandomMapTeacher,
    RandomTeacher,
    StoredTeacher,
)

CANONICAL = "maps:gradcam:of=canonical"
ALL_CLASSES = "maps:gradcam:classes=all,of=canonical"
DRAWN = f"{CANONICAL},share=0.5,draw=x"
POOLED = f"{CANONICAL},pool=2"
MAPS = ["maps:gradcam", "maps:gradcam:target=label,pool=2", CANONICAL, ALL_CLASSES, DRAWN, POOLED]
REST = ["logits", "features:last", "scores:correct"]


def own_parts_are_equal(ours, theirs):
    """All but the maps."""
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.features["last"], theirs.features["last"])
    assert torch.equal(ours.scores["correct"], theirs.scores["correct"])
    assert ours.targets.keys() == theirs.targets.keys()
    for need, target in theirs.targets.items():
        assert torch.equal(ours.targets[need], target), need


# permuted


def partners(teacher, batch) -> torch.Tensor:
    """The positions in the split of the images that answer."""
    split = batch.variant.split
    return torch.from_numpy(teacher.order(split)[split.index.searchsorted(batch.variant.index)])


@pytest.mark.parametrize("seed", range(5))
def test_no_image_keeps_its_own_and_each_answers_once(shapes, live_of, seed):
    teacher = PermutedTeacher(live_of(shapes), seed=seed)
    for split in (shapes.train, shapes.validation):
        order = teacher.order(split)
        assert (order != range(len(split))).all()
        assert sorted(order) == list(range(len(split)))
        assert (order == PermutedTeacher(live_of(shapes), seed=seed).order(split)).all()
        assert (order != PermutedTeacher(live_of(shapes), seed=seed + 1).order(split)).any()


@pytest.mark.parametrize("augment", ["crop:padding=2", "resized_crop:jitter=0.3,erase=0.5", "none"])
@pytest.mark.parametrize("kept", [False, True])
def test_its_answers_are_the_teachers_of_the_other_image(tmp_path, shapes, live_of, batches_of, augment, kept):
    own = StoredTeacher(tmp_path, live_of(shapes)) if kept else live_of(shapes)
    teacher = PermutedTeacher(own)
    loaded = batches_of(shapes, augment=augment, variants=2)
    batch = next(loaded.epoch(3))
    needs = [*REST, *MAPS]
    found = teacher(batch, needs)
    direct = loaded.batch(partners(teacher, batch), None, 3, batch.progress, batch.step)
    expected = own(direct, needs)
    assert (direct.index != batch.index).all()
    assert torch.allclose(found.logits, expected.logits, atol=1e-6)
    assert torch.allclose(found.features["last"], expected.features["last"], atol=1e-6)
    assert torch.equal(found.scores["correct"], expected.scores["correct"])
    for need in ("maps:gradcam", "maps:gradcam:target=label,pool=2"):
        assert torch.allclose(found.maps[need], expected.maps[need], atol=1e-6)
        assert torch.equal(found.targets[need], expected.targets[need])
    unmoved = own(direct.untransformed(), [CANONICAL, ALL_CLASSES])
    here = batch.geometry or type("Still", (), {"move": staticmethod(lambda maps: maps)})
    for need in (CANONICAL, ALL_CLASSES):
        assert torch.allclose(found.maps[need], here.move(unmoved.maps[need]), atol=1e-6), need
    drawn = batch.draw("x")[:, 0] < 0.5
    assert torch.equal(found.targets[DRAWN], expected.targets[CANONICAL] * drawn)
    assert torch.equal(found.maps[DRAWN], found.maps[CANONICAL] * drawn[:, None, None])
    assert torch.allclose(
        found.maps[POOLED], found.maps[CANONICAL].unflatten(1, (2, -1)).unflatten(3, (2, -1)).mean((2, 4))
    )
    assert not torch.allclose(found.logits, own(batch, ["logits"]).logits, atol=1e-2)


def test_only_the_maps(shapes, live_of, batches_of):
    own = live_of(shapes)
    batch = next(batches_of(shapes).epoch(0))
    needs = [*REST, *MAPS]
    plain, every = own(batch, needs), PermutedTeacher(own)(batch, needs)
    found = PermutedTeacher(own, only="maps")(batch, needs)
    own_parts_are_equal(found, plain)
    for need in MAPS:
        assert torch.equal(found.maps[need], every.maps[need])
        assert not torch.allclose(found.maps[need], plain.maps[need], atol=1e-3)
    assert torch.equal(PermutedTeacher(own, only="maps")(batch, ["logits"]).logits, own(batch, ["logits"]).logits)


def test_at_steps_without_maps_they_are_zero_and_of_their_shape(shapes, live_of, batches_of):
    batch = next(batches_of(shapes).epoch(0)).replaced(step=1)
    for teacher in (
        PermutedTeacher(live_of(shapes)),
        RandomMapTeacher(live_of(shapes)),
        MisregisteredTeacher(live_of(shapes)),
    ):
        found = teacher(batch, ["maps:gradcam:every=2", f"{CANONICAL},every=2,pool=2"])
        assert [tuple(maps.shape) for maps in found.maps.values()] == [(12, 8, 8), (12, 2, 2)]
        assert not any(maps.any() for maps in found.maps.values())


def test_two_shares_of_a_batch_say_what_the_whole_says(shapes, live_of, batches_of):
    for kind in (PermutedTeacher, RandomMapTeacher, lambda own: RandomMapTeacher(own, kind="network")):
        whole = kind(live_of(shapes))(next(batches_of(shapes).epoch(2)), ["logits", *MAPS])
        for rank in (1, 0):
            share = next(batches_of(shapes, rank=rank, world=2).epoch(2))
            part = kind(live_of(shapes))(share, ["logits", *MAPS])
            assert torch.allclose(part.logits, whole.logits[rank::2], atol=1e-5)
            for need in MAPS:
                assert torch.allclose(part.maps[need], whole.maps[need][rank::2], atol=1e-5), need
                assert torch.equal(part.targets[need], whole.targets[need][rank::2])


def test_what_cannot_be_permuted_is_said(shapes, live_of, batches_of):
    teacher = PermutedTeacher(live_of(shapes))
    with pytest.raises(UserError, match=r"this batch does not say which set.*Batch\(variant=...\)"):
        teacher(Batch(torch.rand(2, 3, 16, 16), torch.zeros(2).long(), torch.arange(2)), ["logits"])
    split = shapes.train
    with pytest.raises(UserError, match="this split has only one"):
        teacher.order(type(split)(split.rows, split.index[:1]))
    with pytest.raises(UserError, match="a control's answers are not stored"):
        teacher.identity  # noqa: B018


@pytest.mark.parametrize("kind", [PermutedTeacher, MisregisteredTeacher, RandomMapTeacher])
def test_a_control_of_a_teacher_that_draws_draws(said, kind):
    assert kind(RandomTeacher([said(number=1), said(number=2)])).drawing
    assert not kind(said(number=1)).drawing


# misregistered


def test_maps_of_the_shown_images_are_mirrored_and_nothing_else_is_asked(said):
    inner = said(number=1)
    batch = Batch(torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.long), torch.arange(3))
    found = MisregisteredTeacher(inner)(batch, ["logits", "maps:gradcam"])
    assert inner.asked == [("logits", "maps:gradcam")]
    plain = inner(batch, ["logits", "maps:gradcam"])
    assert torch.equal(found.maps["maps:gradcam"], plain.maps["maps:gradcam"].flip(-1))
    assert not torch.equal(found.maps["maps:gradcam"], plain.maps["maps:gradcam"])
    assert torch.equal(found.logits, plain.logits)


def test_maps_stay_where_they_were(shapes, live_of, batches_of):
    own = live_of(shapes)
    batch = next(batches_of(shapes).epoch(0))
    needs = [*REST, *MAPS]
    plain, found = own(batch, needs), MisregisteredTeacher(own)(batch, needs)
    own_parts_are_equal(found, plain)
    unmoved = own(batch.untransformed(), [CANONICAL, ALL_CLASSES, POOLED])
    for need, maps in unmoved.maps.items():
        assert torch.equal(found.maps[need], maps)
        assert not torch.allclose(found.maps[need], plain.maps[need], atol=1e-3)
    drawn = batch.draw("x")[:, 0] < 0.5
    assert torch.allclose(found.maps[DRAWN], unmoved.maps[CANONICAL] * drawn[:, None, None], atol=1e-6)
    for need in MAPS[:2]:
        assert torch.equal(found.maps[need], plain.maps[need].flip(-1))


# random maps


@pytest.mark.parametrize("kind", ["blobs", "centre"])
def test_the_values_are_those_of_the_true_map_in_another_order(shapes, live_of, batches_of, kind):
    own = live_of(shapes)
    batch = next(batches_of(shapes).epoch(0))
    teacher = RandomMapTeacher(own, kind=kind)
    for shown, needs in ((batch, MAPS[:2]), (batch.untransformed(), [CANONICAL, ALL_CLASSES])):
        plain, found = own(shown, [*REST, *needs]), teacher(shown, [*REST, *needs])
        own_parts_are_equal(found, plain)
        for need in needs:
            true, other = plain.maps[need].flatten(-2), found.maps[need].flatten(-2)
            assert other.shape == true.shape
            assert torch.allclose(other.sort(dim=-1).values, true.sort(dim=-1).values, rtol=1e-4, atol=1e-6)
            assert not torch.allclose(other, true, rtol=0.1, atol=1e-6)
    with_image = batch.geometry.move(teacher(batch.untransformed(), [CANONICAL]).maps[CANONICAL])
    assert torch.allclose(teacher(batch, [CANONICAL]).maps[CANONICAL], with_image, atol=1e-6)


def test_blobs_are_another_field_for_each_image_and_the_same_each_time(said):
    batch = Batch(torch.rand(200, 3, 8, 8), torch.zeros(200).long(), torch.arange(200))
    ramp = said()
    ramp.values = lambda batch, *shape: torch.arange(64.0).view(8, 8).expand(len(batch), 8, 8).clone()
    first, again = (
        RandomMapTeacher(ramp)(batch.replaced(epoch=e), ["maps:gradcam"]).maps["maps:gradcam"] for e in (0, 1)
    )
    assert torch.equal(first, again)
    assert torch.equal(
        first[::2], RandomMapTeacher(ramp)(batch.select(torch.arange(0, 200, 2)), ["maps:gradcam"]).maps["maps:gradcam"]
    )
    assert not torch.equal(first, RandomMapTeacher(ramp, seed=1)(batch, ["maps:gradcam"]).maps["maps:gradcam"])
    assert len({tuple(each.flatten().tolist()) for each in first}) == 200
    largest = first.flatten(1).argmax(1)
    assert len(largest.unique()) > 25, "they are all in the same places"
    # smooth: neighbours are nearer than places at random, whose ranks are a third of 64 apart
    assert (first[:, 1:] - first[:, :-1]).abs().mean() < 12


def test_the_centre_has_the_largest_values(said):
    batch = Batch(torch.rand(2, 3, 5, 5), torch.zeros(2).long(), torch.arange(2))
    ramp = said()
    ramp.values = lambda batch, *shape: torch.arange(9.0).view(3, 3).expand(len(batch), 3, 3).clone()
    found = RandomMapTeacher(ramp, kind="centre")(batch, ["maps:gradcam"]).maps["maps:gradcam"][0]
    assert found[1, 1] == 8
    assert sorted(found[[0, 0, 2, 2], [0, 2, 0, 2]].tolist()) == [1, 1, 2, 3]  # the first of the ramp is 0 + 1


def test_a_constant_map_is_one_everywhere(shapes, live_of, batches_of):
    batch = next(batches_of(shapes).epoch(0))
    own = live_of(shapes)
    found = RandomMapTeacher(own, kind="constant")(batch, [*REST, *MAPS])
    own_parts_are_equal(found, own(batch, [*REST, *MAPS]))
    drawn = batch.draw("x")[:, 0] < 0.5
    for need in MAPS:
        expected = drawn[:, None, None] if need == DRAWN else torch.ones(())
        assert torch.allclose(found.maps[need], expected.float(), atol=1e-6)


def test_a_network_with_random_weights_explains_the_teachers_class(shapes, live_of, batches_of):
    own = live_of(shapes)
    before = {key: value.clone() for key, value in own.model.state_dict().items()}
    batch = next(batches_of(shapes).epoch(0))
    teacher = RandomMapTeacher(own, kind="network")
    found, plain = teacher(batch, [*REST, *MAPS]), own(batch, [*REST, *MAPS])
    own_parts_are_equal(found, plain)
    other = teacher.network.model
    assert not torch.equal(other.network[0].weight, own.model.network[0].weight)
    assert torch.allclose(
        found.maps["maps:gradcam"], GradCAM()(other, batch.images, plain.targets["maps:gradcam"]).maps, atol=1e-5
    )
    shown = batch.untransformed()
    unmoved = GradCAM()(other, shown.images, plain.targets[CANONICAL]).maps
    assert torch.allclose(found.maps[CANONICAL], batch.geometry.move(unmoved), atol=1e-5)
    drawn = batch.draw("x")[:, 0] < 0.5
    assert torch.allclose(found.maps[DRAWN], found.maps[CANONICAL] * drawn[:, None, None], atol=1e-5)
    assert found.maps[ALL_CLASSES].shape == plain.maps[ALL_CLASSES].shape
    assert found.maps[POOLED].shape == (12, 2, 2)
    assert all(torch.equal(value, before[key]) for key, value in own.model.state_dict().items())


def test_a_random_network_needs_one_live_teacher(tmp_path, shapes, live_of):
    for inner in (StoredTeacher(tmp_path), BestExplainedTeacher([live_of(shapes), live_of(shapes)])):
        with pytest.raises(UserError, match=r"needs one live teacher; given a"):
            RandomMapTeacher(inner, kind="network")
    RandomMapTeacher(StoredTeacher(tmp_path, live_of(shapes)), kind="network")


def test_features_of_a_random_network_and_nothing_else(tmp_path, shapes, live_of, batches_of):
    own = live_of(shapes)
    batch = next(batches_of(shapes).epoch(0))
    stored = StoredTeacher(tmp_path, own)
    teacher = CONTROLS.build("random_features:seed=3", stored)
    needs = [*REST, *MAPS, "module:0"]
    found, plain = teacher(batch, needs), stored(batch, needs)
    other = teacher.network.model
    assert torch.allclose(found.features["last"], LiveTeacher(other)(batch, ["features:last"]).features["last"])
    assert not torch.allclose(found.features["last"], plain.features["last"])
    own_parts_are_equal(replace(found, features=plain.features), plain)
    assert all(torch.equal(found.maps[need], plain.maps[need]) for need in MAPS)
    assert torch.equal(found.modules["0"].weight, plain.modules["0"].weight)
    assert not torch.equal(other.network[0].weight, own.model.network[0].weight)
    without = CONTROLS.build("random_features", own)
    assert without(batch, ["logits"]).features == {}
    assert without.network is None  # no copy is made before features are asked for
    with pytest.raises(UserError, match="random features come from a copy of the teacher's network"):
        CONTROLS.build("random_features", StoredTeacher(tmp_path))


# nested


@pytest.mark.parametrize(
    "control", ["permuted", "permuted:only=maps", "misregistered", "random_maps", "random_maps:kind=constant"]
)
def test_a_step_with_several_stored_teachers_under_a_control(tmp_path, shapes, live_of, batches_of, control):
    stored = [StoredTeacher(tmp_path / str(seed), live_of(shapes, seed, stride=1 + seed)) for seed in range(2)]
    teacher = CONTROLS.build(control, BestExplainedTeacher(stored, judge="focus"))
    student = live_of(shapes, 7).model.requires_grad_(True)
    objective = Objective(student, build_methods(["ce", "kd", "map_match:of=canonical", "map_match:as=crop"])).train()
    batch = next(batches_of(shapes).epoch(0))
    objective.prepare(batch, teacher(batch, objective.needs))
    answer = teacher(batch, objective.needs)
    terms = objective(batch, answer)
    assert set(terms) == {"ce", "kd", "map_match", "crop"}
    assert all(term.isfinite() and term > 0 for term in terms.values())
    sum(terms.values()).backward()
    assert student.network[0].weight.grad.abs().sum() > 0
    assert set(answer.trust.tolist()) == {0.0, 1.0}
    assert "follow/1" in teacher.notes() and teacher.classes == tuple(shapes.classes)
    inner = teacher.inner(batch, ["logits"])
    if control == "permuted":
        direct = batches_of(shapes).batch(partners(teacher, batch), None, 0, 0.0)
        assert torch.equal(answer.trust, teacher.inner(direct, ["logits"]).trust)
        assert torch.equal(teacher(batch, ["maps:gradcam"]).trust, answer.trust)
    else:
        assert torch.equal(answer.trust, inner.trust) and torch.equal(answer.logits, inner.logits)
        assert torch.equal(teacher(batch, [CANONICAL]).trust, answer.trust)


def test_when_the_student_is_used_the_teacher_itself_answers(tmp_path, shapes, live_of):
    own = live_of(shapes)
    unknown = torch.full((2,), -1)
    batch = Batch(torch.rand(2, 3, 16, 16), unknown, unknown)
    expected = own(batch, ["maps:gradcam"]).maps["maps:gradcam"]
    for control in CONTROLS:
        teacher = CONTROLS.build(control, StoredTeacher(tmp_path, own)).live()
        assert torch.equal(teacher(batch, ["maps:gradcam"]).maps["maps:gradcam"], expected)
