"""A judge's number is the measure's, of the untransformed image and the teacher's own class, live or stored."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from distilens.core import Answer, Batch, Model
from distilens.data import from_arrays
from distilens.explain.gradcam import GradCAM
from distilens.foundation.errors import UserError
from distilens.measure import energy_in_mask, insertion
from distilens.runs.recipe_file import make_recipe
from distilens.teachers import LiveTeacher, StoredTeacher
from distilens.teachers.judges import JUDGES, build_judge, level, on_smallest_grid
from distilens.teachers.needs import Need

ALONE = [
    "confidence",
    "correct",
    "insertion:steps=4",
    "insertion:explainer=[ig:steps=2],steps=2",
    "average_drop",
    "energy_in_mask",
    "focus:explainer=cam",
]


def scores(teacher, batch, judge):
    need = f"scores:{judge}"
    return teacher(batch, [need]).scores[Need.parse(need).what]


@pytest.mark.parametrize("judge", ALONE)
def test_scores_are_of_the_untransformed_image_in_their_range_and_the_same_stored(
    tmp_path, shapes, live_of, batches_of, judge
):
    teacher = live_of(shapes)
    loaded = batches_of(shapes)
    batch = next(loaded.epoch(0))
    found = scores(teacher, batch, judge)
    assert found.shape == (12,) and found.dtype == torch.float32
    assert ((found >= 0) & (found <= 1)).all() and len(found.unique()) > 1
    assert torch.equal(found, scores(teacher, batch.untransformed(), judge))
    store = StoredTeacher(tmp_path, teacher)
    assert torch.allclose(scores(store, batch, judge), found, atol=1e-5)
    again = loaded.batch(
        torch.from_numpy(loaded.split.index.searchsorted(batch.variant.index)), None, 1, 0.0
    )  # another variant
    assert torch.allclose(scores(StoredTeacher(tmp_path), again, judge), found, atol=1e-5)


def test_they_are_the_measures_of_the_teachers_own_class(shapes, live_of, batches_of):
    teacher = live_of(shapes)
    batch = next(batches_of(shapes).epoch(0))
    shown = batch.untransformed()
    found = GradCAM()(teacher.model, shown.images)
    images, maps = shown.images, found.maps
    right = found.logits.argmax(1) == batch.labels
    assert right.any() and not right.all()
    assert torch.equal(scores(teacher, batch, "correct"), right.float())
    for judge, expected in {
        "insertion:steps=5": insertion(teacher.model, images, maps, found.target, steps=5),
        "energy_in_mask": energy_in_mask(maps, shown.mask),
    }.items():
        assert torch.allclose(scores(teacher, batch, judge), expected.nan_to_num(0), atol=1e-5), judge


def test_focus_and_drop_by_hand():
    """Of a network whose last feature is the image's grey level in 2x2 cells."""
    network = nn.Sequential(
        nn.AvgPool2d(4), nn.Conv2d(3, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
    )
    with torch.no_grad():
        network[1].weight.fill_(1 / 3)
        network[4].weight.copy_(torch.tensor([[40.0], [0.0]]))
        network[4].bias.zero_()
    model = Model(network, "ab", size=(8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = torch.zeros(4, 3, 8, 8)
    images[0, :, :4, :4] = 1  # one cell of four
    images[1, :, :4] = 1  # two cells
    images[2] = 1  # all of them
    batch = Batch(images, torch.zeros(4, dtype=torch.long), torch.arange(4))  # and one without evidence
    teacher = LiveTeacher(model)
    assert scores(teacher, batch, "focus").tolist() == pytest.approx([1, 1 - math.log(2) / math.log(4), 0, 0], abs=1e-5)
    cells = functional.avg_pool2d(images[:, :1], 4)
    cells[2] = 0  # a flat map says nothing of where, and hides all
    seen = images[:, 0] * functional.interpolate(cells, (8, 8), mode="bilinear")[:, 0]
    whole, behind = (torch.sigmoid(40 * each.mean((1, 2))) for each in (images[:, 0], seen))
    expected = (behind / whole).where(torch.arange(4) < 3, 0)  # an empty map is the worst
    assert torch.allclose(scores(teacher, batch, "average_drop"), expected, atol=1e-5)
    assert expected[2].item() == pytest.approx(0.5)


def test_an_empty_map_has_the_worst_score():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(network[-1].weight)
    batch = Batch(torch.rand(3, 3, 8, 8), torch.zeros(3, dtype=torch.long), torch.arange(3), mask=torch.ones(3, 8, 8))
    teacher = LiveTeacher(Model(network, "ab", size=(8, 8)))
    for judge in ("insertion", "average_drop", "energy_in_mask", "focus"):
        assert scores(teacher, batch, judge).tolist() == [0, 0, 0], judge


def test_consensus_is_the_cosine_to_the_mean_of_the_others():
    judge = build_judge("consensus:explainer=cam")
    (need,) = judge.needs
    assert (Need.parse(need).of, Need.parse(need).kind) == ("canonical", "maps")
    left, right, both = (torch.tensor([[a, b], [0.0, 0.0]]) for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)))
    fine = both.repeat_interleave(2, 0).repeat_interleave(2, 1) * 1e-20  # another scale and grid, the same place
    # of the second image, one teacher says nothing
    answers = [Answer(maps={need: torch.stack(maps)}) for maps in ([left, left], [right, left * 0], [fine, fine])]
    half = math.sqrt(0.5)
    aside = half / math.hypot(half, 1 + half)  # (1, 0) and the direction of (0, 1) + (half, half)
    expected = [[aside, aside, 1.0], [half, -1.0, half]]
    assert torch.allclose(judge.compare(answers), torch.tensor(expected), atol=1e-5)


def test_one_teacher_has_no_consensus(shapes, live_of, batches_of):
    batch = next(batches_of(shapes).epoch(0))
    with pytest.raises(UserError, match="consensus compares several teachers"):
        live_of(shapes)(batch, ["scores:consensus"])


def test_without_masks_there_is_no_energy_in_them(live_of, batches_of):
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8).numpy()
    data = from_arrays(images, [0, 1] * 20)
    with pytest.raises(UserError, match="these data have no masks: use another judge"):
        live_of(data)(next(batches_of(data).epoch(0)), ["scores:energy_in_mask"])


@pytest.mark.parametrize(("judge", "changed"), [("correct", "labels"), ("energy_in_mask", "masks"), ("focus", None)])
def test_what_a_judge_reads_is_what_its_scores_were_made_from(tmp_path, live_of, batches_of, judge, changed):
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8).numpy()
    masks = torch.randint(0, 2, (40, 16, 16), dtype=torch.uint8).numpy()
    plain = from_arrays(images, [0, 1] * 20, masks=masks, test=(images[:4], [0, 1, 0, 1]))
    others = {
        "labels": from_arrays(images, [1, 0] * 20, masks=masks, test=(images[:4], [0, 1, 0, 1])),
        "masks": from_arrays(images, [0, 1] * 20, masks=1 - masks, test=(images[:4], [0, 1, 0, 1])),
    }
    teacher = live_of(plain)

    def ask(data):
        rows = type(data.train)(data.train.rows, data.train.index, origin="the same pixels")
        loaded = batches_of(data)
        loaded.split = rows
        batch = next(loaded.epoch(0))
        return scores(StoredTeacher(tmp_path, teacher), batch, judge)

    ask(plain)
    for name, data in others.items():
        if name == changed:
            with pytest.raises(UserError, match=rf"{changed}: recorded"):
                ask(data)
        else:
            ask(data)


def test_a_judge_in_notation_says_all_its_options():
    assert str(JUDGES.resolve("insertion:steps=3")) == "insertion:explainer=[gradcam:tap=last],steps=3"
    with pytest.raises(UserError, match=r"unknown explainer 'gradcm'\. Did you mean 'gradcam'"):
        JUDGES.resolve("focus:explainer=gradcm")
    content = {
        "data": "shapes",
        "teacher": {"model": "resnet14", "others": ["vgg8"], "follow": "best_explained:judge=[insertion:step=3]"},
        "student": {"model": "resnet8"},
    }
    with pytest.raises(UserError, match="unknown option 'step' of judge 'insertion'"):
        make_recipe(content)


def test_maps_of_several_on_the_smallest_grid():
    fine, coarse, wide = torch.rand(2, 8, 8), torch.rand(2, 4, 4), torch.rand(2, 3, 8, 2)
    assert [tuple(each.shape) for each in on_smallest_grid([fine, coarse])] == [(2, 4, 4)] * 2
    assert torch.allclose(
        on_smallest_grid([fine, coarse])[0], fine.unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4))
    )
    assert [tuple(each.shape) for each in on_smallest_grid([wide, wide])] == [(2, 3, 8, 2)] * 2
    signed = level(torch.tensor([[[-3.0, 1.0]], [[0.0, 0.0]]]))
    assert signed.tolist() == [[[-0.75, 0.25]], [[0.0, 0.0]]]
