"""Segmentation: its loss, one confusion matrix, intervals over images, aims."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from distilens.data.geometry import Geometry
from distilens.foundation.errors import UserError
from distilens.tasks import NOWHERE, VOID, Segmentation, as_task, task_from
from distilens.tasks.saving import plain_task

TASK = Segmentation(("sky", "road", "car", "tree"))
GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS, OTHERS = torch.randn(2, 9, 4, 12, 10, generator=GENERATOR)
TARGETS = torch.randint(0, 3, (9, 12, 10), generator=GENERATOR).to(torch.uint8)  # the class tree is in no target
TARGETS[0, :5] = VOID
TARGETS[4] = VOID


def iou_by_hand(answers, targets, number):
    known = targets != VOID
    ours, theirs = (answers == number) & known, (targets == number) & known
    union = (ours | theirs).sum()
    return (ours & theirs).sum() / union if union else None


def miou_by_hand(answers, targets):
    values = [iou_by_hand(answers, targets, number) for number in range(4)]
    return np.mean([value for value in values if value is not None])


def test_a_case_by_hand():
    targets = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 1, 1], [2, 2, VOID, VOID]], dtype=torch.uint8)[None]
    answers = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [2, 2, 1, 1], [2, 2, 2, 3]], dtype=torch.uint8)[None]
    # sky: 3 right, 4 there, 4 predicted: 3/5; road: 5 right, 6, 6: 5/7; car: 4/4; tree only at a void place: absent
    scores = TASK.score(TASK.tally(answers, targets))
    assert scores["mIoU"].value == pytest.approx((3 / 5 + 5 / 7 + 1) / 3)
    assert scores["dice"].value == pytest.approx((6 / 8 + 10 / 12 + 1) / 3)
    assert scores["pixel accuracy"].value == pytest.approx(12 / 14)
    assert TASK.value(TASK.tally(answers, targets)) == scores["mIoU"].value
    classes = TASK.measure_classes(answers, targets)
    assert [classes[name].value for name in TASK.classes] == pytest.approx([3 / 5, 5 / 7, 1, None])


def test_one_matrix_over_all_images_in_any_batches():
    answers = OUTPUTS.argmax(1)
    whole = TASK.value(TASK.tally(OUTPUTS, TARGETS))
    assert whole == pytest.approx(miou_by_hand(answers.numpy(), TARGETS.numpy()))
    for size in (1, 2, 5):
        parts = zip(OUTPUTS.split(size), TARGETS.split(size), strict=True)
        assert TASK.value(torch.stack([TASK.tally(*part) for part in parts]).sum(0)) == whole
    assert int(TASK.tally(OUTPUTS, TARGETS)[-1]) == 8  # images with a target


def test_torchmetrics_agrees():
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics, the reference, is not installed")
    present = Segmentation(("sky", "road", "car"))  # torchmetrics counts an absent class as 0
    metric = torchmetrics.JaccardIndex(task="multiclass", num_classes=3, ignore_index=VOID)
    for outputs, targets in zip(OUTPUTS[:, :3].split(4), TARGETS.split(4), strict=True):
        metric.update(outputs.argmax(1), targets.long())
    assert present.value(present.tally(OUTPUTS[:, :3], TARGETS)) == pytest.approx(float(metric.compute()), abs=1e-6)


def test_classes_of_places_are_scored_like_outputs():
    compact = TASK.compact(OUTPUTS, TARGETS)
    assert compact.dtype == torch.uint8
    assert TASK.measure(compact, TARGETS) == TASK.measure(OUTPUTS, TARGETS)
    assert TASK.apart(compact, TASK.compact(OTHERS, TARGETS), TARGETS) == TASK.apart(OUTPUTS, OTHERS, TARGETS)


def test_outputs_with_a_nan_are_never_right():
    outputs = functional.one_hot(TARGETS.long().clamp_max(3), 4).permute(0, 3, 1, 2).float()
    assert TASK.measure(outputs, TARGETS)["pixel accuracy"].value == 1
    outputs[:, :, 6:] = torch.nan
    assert TASK.measure(outputs, TARGETS)["pixel accuracy"].value < 0.6


def test_an_image_by_itself():
    values = TASK.values(OUTPUTS, TARGETS)
    for at in (0, 1, 8):
        assert float(values[at]) == pytest.approx(miou_by_hand(OUTPUTS[at].argmax(0).numpy(), TARGETS[at].numpy()))
    assert values[4].isnan()


def test_intervals_are_over_images():
    measured = TASK.measure(OUTPUTS, TARGETS)
    for estimate in measured.values():
        assert estimate.low < estimate.value < estimate.high and estimate.n == 8
    apart = TASK.apart(OUTPUTS, OTHERS, TARGETS)
    one, other = (TASK.value(TASK.tally(given, TARGETS)) for given in (OUTPUTS, OTHERS))
    assert apart.value == pytest.approx(one - other)
    assert (TASK.apart(OUTPUTS, OUTPUTS, TARGETS).low, TASK.apart(OUTPUTS, OUTPUTS, TARGETS).high) == (0, 0)
    nothing = torch.full_like(TARGETS, VOID)
    assert TASK.apart(OUTPUTS, OTHERS, nothing) is None
    assert TASK.measure(OUTPUTS, nothing)["mIoU"].value is None


def test_the_loss_is_the_mean_over_places_with_a_class():
    losses = TASK.loss(OUTPUTS, TARGETS)
    for at in (0, 3):
        known = TARGETS[at] != VOID
        places = functional.cross_entropy(OUTPUTS[at].permute(1, 2, 0)[known], TARGETS[at][known].long())
        assert float(losses[at]) == pytest.approx(float(places), rel=1e-5)
    assert losses[4] == 0
    assert torch.equal(TASK.masked_loss(OUTPUTS, TARGETS), losses)


def test_void_places_and_the_batch_change_no_loss():
    outputs = OUTPUTS.clone().requires_grad_()
    TASK.loss(outputs, TARGETS).sum().backward()
    assert not outputs.grad[4].any() and not outputs.grad[0, :, :5].any() and outputs.grad[0, :, 5:].any()
    assert torch.allclose(TASK.loss(OUTPUTS[2:3], TARGETS[2:3]), TASK.loss(OUTPUTS, TARGETS)[2:3])


def test_outputs_on_a_coarser_grid_are_resized():
    coarse = torch.randn(9, 4, 6, 5, generator=GENERATOR)
    large = functional.interpolate(coarse, (12, 10), mode="bilinear", align_corners=False)
    assert torch.equal(TASK.loss(coarse, TARGETS), TASK.loss(large, TARGETS))
    assert torch.equal(TASK.compact(coarse, TARGETS), TASK.compact(large, TARGETS))


def test_masks_of_another_form_are_refused():
    for wrong in (TARGETS.long(), TARGETS[:4], TARGETS[:, 0], torch.full_like(TARGETS, 4)):
        with pytest.raises(UserError, match=r"segmentation|mask"):
            TASK.loss(OUTPUTS, wrong)
    with pytest.raises(UserError, match="300 classes"):
        Segmentation(tuple(map(str, range(300))))
    assert "each place" in TASK.check_outputs(torch.zeros(1, 4))
    assert "2 logits per place" in TASK.check_outputs(torch.zeros(1, 2, 5, 5))
    assert TASK.check_outputs(OUTPUTS[:1]) == ""


def test_strata_are_images_with_a_target():
    assert TASK.strata(TARGETS.numpy()).tolist() == [0, 0, 0, 0, -1, 0, 0, 0, 0]
    assert TASK.known(TARGETS).tolist() == (TASK.strata(TARGETS.numpy()) == 0).tolist()


def test_masks_move_with_their_picture_and_are_void_outside():
    geometry = Geometry(torch.tensor([[-2.0, 1.0, 12.0, 10.0]]), torch.tensor([True]), (12, 10), (12, 10), whole=True)
    moved = TASK.moved(TARGETS[2:3], geometry)[0]
    expected = np.full((12, 10), VOID)
    for row in range(12):
        for column in range(10):
            source = row - 2, 1 + 9 - column
            if 0 <= source[0] < 12 and 0 <= source[1] < 10:
                expected[row, column] = TARGETS[2][source]
    assert np.array_equal(moved.numpy(), expected)
    assert TASK.moved(TARGETS, None) is TARGETS


def test_an_aim_is_a_class_and_its_places():
    aim = TASK.explained(OUTPUTS)
    answers = OUTPUTS.argmax(1)
    for at in range(9):
        most = int(torch.bincount(answers[at].flatten(), minlength=4).argmax())
        assert torch.equal(aim[at], torch.where(answers[at] == most, most, NOWHERE))
        place = answers[at] == most
        assert float(TASK.scalar(OUTPUTS, aim)[at]) == pytest.approx(float(OUTPUTS[at, most][place].sum()), rel=1e-5)
        sure = OUTPUTS[at].softmax(0)[most][place].mean()
        assert float(TASK.confidence(OUTPUTS, aim)[at]) == pytest.approx(float(sure), rel=1e-5)
    assert torch.equal(TASK.explained(TASK.compact(OUTPUTS, TARGETS)), aim)
    nowhere = torch.full_like(aim, NOWHERE)
    assert not TASK.scalar(OUTPUTS, nowhere).any() and not TASK.confidence(OUTPUTS, nowhere).any()


def test_an_aim_does_not_follow_changed_outputs():
    aim = TASK.aim(OUTPUTS, torch.full((9,), 2))
    changed = -OUTPUTS
    place = OUTPUTS.argmax(1) == 2
    by_hand = torch.stack([changed[at, 2][place[at]].sum() for at in range(9)])
    assert torch.allclose(TASK.scalar(changed, aim), by_hand, atol=1e-4)


def test_it_is_saved_and_described():
    assert task_from(plain_task(TASK)) == TASK != as_task(TASK.classes)
    assert TASK.describe(np.array([[1, 1], [1, VOID]])) == "road 75%"
    assert (TASK.outputs, TASK.summary, TASK.dense) == (4, "4 classes", True)
