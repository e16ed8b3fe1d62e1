"""Scores of a segmentation: contours by hand, agreement, absent classes."""

import numpy as np
import pytest
import torch

from distilens.measure.places import boundary_score, contours, counts_alike, places_apart, same_answers, score_places
from distilens.tasks import VOID, Segmentation

TASK = Segmentation(("ground", "object", "never"))


def square(top, left, side=6):
    mask = torch.zeros(20, 24, dtype=torch.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def test_a_contour_is_the_places_with_a_neighbour_outside():
    inside = contours(square(4, 5)[None] == 1)[0]
    by_hand = torch.zeros(20, 24, dtype=torch.bool)
    by_hand[4:10, 5:11] = True
    by_hand[5:9, 6:10] = False
    assert torch.equal(inside, by_hand)
    edge = contours(square(0, 0)[None] == 1)[0]
    assert int(edge.sum()) == 11  # the border of the image is no contour: one row and one column of the square's


def f_by_hand(answer, target, number, reach):
    def border(mask):
        return [
            (row, column)
            for row, column in zip(*np.nonzero(mask), strict=True)
            if any(
                0 <= row + down < mask.shape[0]
                and 0 <= column + across < mask.shape[1]
                and not mask[row + down, column + across]
                for down, across in ((0, 1), (0, -1), (1, 0), (-1, 0))
            )
        ]

    ours, theirs = border(answer == number), border(target == number)

    def near(points, others):
        return np.mean([min(np.hypot(a - c, b - d) for c, d in others) <= reach for a, b in points])

    right, found = near(ours, theirs), near(theirs, ours)
    return 2 * right * found / (right + found) if right + found else 0.0


def test_contours_are_compared_with_a_tolerance():
    target = square(4, 5)
    for shift, reach in ((1, 1), (2, 1), (3, 1)):
        answer = square(4 + shift, 5)
        found = boundary_score(answer[None], target[None], 3)
        by_hand = np.mean([f_by_hand(answer.numpy(), target.numpy(), number, reach) for number in (0, 1)])
        assert found.value == pytest.approx(by_hand)
    assert boundary_score(target[None], target[None], 3).value == 1
    assert boundary_score(square(12, 15)[None], target[None], 3).value == 0


def test_void_places_and_flat_images_have_no_contour():
    target, answer = square(4, 5), square(4, 5)
    target[:3], answer[0, :4] = VOID, 2
    assert boundary_score(answer[None], target[None], 3).value == 1
    flat = torch.zeros(2, 20, 24, dtype=torch.uint8)
    assert boundary_score(flat, flat, 3).value is None


def test_agreement_counts_all_places():
    ours, theirs = torch.stack([square(4, 5), square(0, 0)]), torch.stack([square(5, 5), square(0, 0)])
    assert counts_alike(ours, theirs).tolist() == [[480 - 12, 480], [480, 480]]
    assert same_answers(ours, theirs).value == pytest.approx(1 - 12 / 960)
    assert places_apart({"student": ours, "base": theirs, "teacher": ours}, ours)["agreement"]["mean"] == pytest.approx(
        12 / 960
    )
    assert places_apart({"student": ours, "base": theirs}, ours) == {"agreement": None}


def test_absent_classes_are_left_out_and_named():
    targets = torch.stack([square(4, 5), square(8, 9)])
    scores = score_places(TASK, {"student": torch.stack([square(5, 5), square(8, 9)])}, targets, "student")
    assert scores["absent"] == ["never"] and scores["by class"]["never"] is None
    assert scores["by class"]["object"]["accuracy"] == pytest.approx((30 + 36) / (42 + 36))
    assert scores["agreement"] is None and 0 < scores["boundary F"]["accuracy"] <= 1
