"""cwd, pairwise, ifvd, mgd: the losses of their features, sized by themselves, and what they refuse."""

import numpy as np
import pytest
import torch

from dense import Batch, first_batch, network, pictures
from distilens import losses
from distilens.core import Answer, Objective, Output, check_task
from distilens.data import load
from distilens.foundation.errors import UserError
from distilens.methods import build_methods
from distilens.models import build_model
from distilens.models.grids import on_one_grid
from distilens.teachers import LiveTeacher


@pytest.fixture(scope="module")
def batch() -> Batch:
    return first_batch(pictures())


def prepared(part: str, batch: Batch) -> tuple[Objective, Output, Answer]:
    """An objective of one method, the output of its student, and the answer of a wider teacher."""
    teacher = LiveTeacher(network(8, seed=1))
    objective = Objective(network().train(), build_methods([part]))
    answer = teacher(batch, objective.needs)
    torch.manual_seed(2)
    objective.prepare(batch, answer)
    with torch.no_grad():
        output = objective.student(batch.view)
    return objective, output, answer


def method_of(objective: Objective):
    return next(iter(objective.terms().values()))


def test_cwd_compares_logits_or_features_through_a_convolution(batch):
    objective, output, answer = prepared("cwd:temperature=2", batch)
    found = method_of(objective).loss(batch, output, answer)
    assert not list(method_of(objective).parameters())
    assert torch.equal(found, losses.cwd(output.logits, answer.logits, temperature=2, reduction="none"))

    objective, output, answer = prepared("cwd:tap=late,teacher_tap=middle", batch)  # on the student's, smaller grid
    method = method_of(objective)
    ours, theirs = on_one_grid(method.regressor(output.features["late"]), answer.features["middle"])
    assert method.regressor.weight.shape == (8, 4, 1, 1) and theirs.shape[-1] == 4
    assert torch.allclose(method.loss(batch, output, answer), losses.cwd(ours, theirs, reduction="none"))


def test_pairwise_and_ifvd_need_no_layers_of_their_own(batch):
    objective, output, answer = prepared("pairwise:tap=middle,pool=3", batch)
    ours, theirs = output.features["middle"], answer.features["middle"]
    assert not list(method_of(objective).parameters())
    expected = losses.pairwise(ours, theirs, pool=3, reduction="none")
    assert torch.equal(method_of(objective).loss(batch, output, answer), expected)

    objective, output, answer = prepared("ifvd:tap=middle", batch)
    expected = losses.ifvd(ours, theirs, batch.targets, reduction="none")
    assert not list(method_of(objective).parameters())
    assert torch.allclose(method_of(objective).loss(batch, output, answer), expected)


def test_mgd_generates_the_features_from_the_places_that_are_shown(batch):
    objective, output, answer = prepared("mgd:tap=late", batch)
    method = method_of(objective)
    ours, theirs = output.features["late"], answer.features["late"]
    shown = method.draw_shown(batch, ours)
    expected = losses.fitnet(method.generator(method.regressor(ours) * shown), theirs, reduction="none")
    assert torch.allclose(method.loss(batch, output, answer), expected)
    # what is hidden has no influence
    noise = output.features["late"] + 9 * (1 - shown) * torch.randn_like(ours)
    again = method.loss(batch, Output(output.logits, {"late": noise}, size=output.size), answer)
    assert torch.allclose(again, expected, rtol=1e-5)


def test_the_mask_of_mgd_hides_its_share_and_depends_on_the_image_alone(batch):
    (method,) = build_methods(["mgd:share=0.75"]).values()
    wide = torch.zeros(len(batch), 2, 40, 40)
    shown = method.draw_shown(batch, wide)
    assert shown.shape == (len(batch), 1, 40, 40) and shown.unique().tolist() == [0, 1]
    assert np.allclose(shown.mean((1, 2, 3)), 0.25, atol=0.05)
    order = torch.tensor([4, 0, 2])
    assert torch.equal(method.draw_shown(batch.select(order), wide[order]), shown[order])
    assert not torch.equal(method.draw_shown(batch.replaced(epoch=1), wide), shown)
    assert not torch.equal(shown[0], shown[1])


@pytest.mark.parametrize("part", ["cwd:tap=layer2", "pairwise:tap=layer2", "mgd:tap=layer2"])
def test_methods_of_features_hold_for_classification(part, tmp_path):
    data = load("shapes:train=64,test=40,size=16", tmp_path)
    batch = first_batch(data, 4)
    teacher = LiveTeacher(build_model("resnet8", data.task, data.size))
    objective = Objective(build_model("resnet8", data.task, data.size).train(), build_methods([part]))
    check_task(objective.terms(), data.task)
    objective.prepare(batch, teacher(batch, objective.needs))
    (term,) = objective(batch, teacher(batch, objective.needs)).values()
    term.backward()
    assert term.isfinite() and term > 0


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("cwd", "it compares the places of each class, and the logits of a whole image have none"),
        ("ifvd", "it needs the class of each place"),
        ("cirkd", "it stores features of each class, and needs the class of each place"),
        ("dice", "it compares the masks of an image"),
        ("lovasz", "it compares the masks of an image"),
    ],
)
def test_methods_of_places_refuse_classification_with_the_reason(part, reason, tmp_path):
    data = load("shapes:train=64,test=40,size=16", tmp_path)
    with pytest.raises(UserError, match=f"{part} is for segmentation, but the task of .* is classification: {reason}"):
        check_task(build_methods([part]), data.task)
