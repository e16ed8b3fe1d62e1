"""Answers that mean nothing are found before anything is trained, and named."""

import dataclasses

import pytest
import torch
from torch import nn

from distilens.core import Model
from distilens.data import load
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.models import build_model
from distilens.teachers import nobody
from distilens.training import dry_run
from distilens.training.dry_run import check_logits, check_trainable, rehearsed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load("shapes:train=300,test=40,size=16", tmp_path_factory.mktemp("shapes"))


class Answering(nn.Module):
    """Answers by the brightness of the first pixels, where the label was written."""

    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.change, self.weight = change, nn.Parameter(torch.ones(()))

    def forward(self, pixels):
        return self.change(10 * self.weight * pixels[:, 0, 0, :8])


def labelled(data):
    """The data with each label written into its image: a network that reads it is always right."""
    rows = data.train.rows
    images = rows.images.copy()
    images[:, 0, :8, :] = 0
    known = rows.labels >= 0
    images[known, 0, rows.labels[known], :] = 255
    split = dataclasses.replace(data.train, rows=dataclasses.replace(rows, images=images))
    return dataclasses.replace(data, train=split, validation=split)


def judged(data, change, *, used=True):
    model = Model(Answering(change), data.classes, size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, name="mine")
    return check_logits(model, labelled(data), "teacher", used=used)


def test_a_teacher_that_knows_its_data_passes(data):
    assert judged(data, lambda logits: logits) is None


@pytest.mark.parametrize("used", [True, False])
def test_nan_and_probabilities_are_refused(data, used):
    with pytest.raises(UserError, match="the teacher mine answers with NaN or infinite logits"):
        judged(data, lambda logits: logits / 0 * 0, used=used)
    with pytest.raises(UserError, match="answers with probabilities that sum to 1, but logits are needed"):
        judged(data, lambda logits: logits.softmax(1), used=used)


def test_log_probabilities_are_logits(data):
    assert judged(data, lambda logits: logits.log_softmax(1)) is None


def test_worse_than_chance_is_refused_where_the_answers_are_used(data):
    with pytest.raises(
        UserError, match=r"right for 0 of 128 images; chance is 12%: its classes may be in another order"
    ):
        judged(data, lambda logits: logits.roll(1, 1))
    assert judged(data, lambda logits: logits.roll(1, 1), used=False) is None


def test_no_better_than_chance_is_said(data):
    said = judged(data, lambda logits: torch.arange(8.0).expand(len(logits), 8) + 0 * logits)
    assert said is not None
    assert "it may know nothing of these data" in said


def test_few_images_are_no_reason_to_doubt_a_teacher(data, monkeypatch):
    """Right for 2 of 4 where chance is 12 %: it may as well be right for half of all."""
    monkeypatch.setattr(dry_run, "IMAGES", 4)
    monkeypatch.setattr(dry_run, "KNOWS", 0.0)
    wrong_half = lambda logits: torch.where(torch.arange(len(logits))[:, None] < 3, logits.roll(1, 1), logits)  # noqa: E731
    assert judged(data, wrong_half) is None
    monkeypatch.setattr(dry_run, "KNOWS", 0.9)
    assert "is right for 1 of 4" in judged(data, wrong_half)


def test_a_batch_of_one_is_refused_where_a_batch_norm_cannot_take_it(data):
    class Separate(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 8)

        def forward(self, pixels):
            return self.head(self.norm(pixels.mean((2, 3))))

    model = Model(Separate(), data.classes, size=(16, 16), name="separate")
    check_trainable(model, 2, "student")
    with pytest.raises(
        UserError, match=r"the student separate cannot be trained on batches of one image: .*larger train.batch"
    ):
        check_trainable(model, 1, "student")
    assert not model.network.norm.num_batches_tracked, "it is tried on a copy"
    check_trainable(Model(Answering(), data.classes, size=(16, 16)), 1, "student")


class Silent(nn.Module):
    """Its forward runs without gradients, as people write it for teachers."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))

    @torch.no_grad()
    def forward(self, images):
        return self.inner(images)


def quantised():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 4))
    return torch.ao.quantization.quantize_dynamic(network.eval(), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Silent, r"the teacher mine cannot be trained: no gradient .* teacher\.finetune=none"),
        (
            quantised,
            r"the teacher mine cannot be saved in a run: its weight '3\._packed_params\.dtype' is not a plain tensor",
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 8])
def test_what_cannot_be_trained_or_kept(data, make, message, size):
    model = Model(make(), data.classes, size=(16, 16), name="mine")
    with pytest.raises(UserError, match=message):
        check_trainable(model, size, "teacher")


def test_a_frozen_model_is_refused_and_a_head_can_be_trained(data):
    model = build_model("resnet8", data.classes, (16, 16)).requires_grad_(False)
    with pytest.raises(UserError, match=r"all its weights are frozen \(requires_grad\)"):
        check_trainable(model, 8, "student")
    model.requires_grad_(True).freeze(but=["fc"])
    check_trainable(model, 1, "teacher")
    assert not model.network.conv1.training


def test_a_frozen_student_is_rehearsed_as_one_that_is_trained(data):
    model = build_model("resnet8", data.classes, data.size).requires_grad_(False)
    batch = next(Batches(data.train, 4).epoch(0))
    objective = rehearsed(model, ["ce"], batch, nobody)
    assert all(parameter.requires_grad for parameter in objective.student.parameters())
    objective(batch, nobody(batch, objective.needs))["ce"].mean().backward()
    assert not any(parameter.requires_grad for parameter in model.parameters()), "the given student stays frozen"
