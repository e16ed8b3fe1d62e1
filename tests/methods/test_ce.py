"""Labels of classes of uneven size."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from brightness import pictures
from distilens.core import Answer, Batch, Output
from distilens.data import load
from distilens.data.pipeline import Batches
from distilens.foundation.errors import UserError
from distilens.methods.ce import CE
from distilens.models import build_model


@pytest.fixture
def uneven(cache):
    """Forty images of one class, eight of another, and none of the others."""
    data = load("shapes:train=600,test=40,size=16")
    labels = data.train.labels
    kept = np.concatenate([np.flatnonzero(labels == 0)[:40], np.flatnonzero(labels == 1)[:8]])
    return dataclasses.replace(data, train=dataclasses.replace(data.train, index=np.sort(data.train.index[kept])))


def test_a_rare_class_counts_as_much_as_a_common_one(uneven):
    method = CE(balanced=True)
    batch = next(iter(Batches(uneven.train, 48)))
    student = build_model("resnet8", uneven.classes, uneven.size)
    method.prepare(student, batch, Answer())
    logits = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    found = method.loss(batch, Output(logits), Answer())
    plain = functional.cross_entropy(logits, batch.labels, reduction="none")
    common, rare = batch.labels == 0, batch.labels == 1
    assert torch.allclose(found[common], plain[common] * 48 / (2 * 40))
    assert torch.allclose(found[rare], plain[rare] * 48 / (2 * 8))
    ones = method.loss(batch, Output(torch.zeros(48, 8)), Answer())
    assert ones[common].sum() == pytest.approx(ones[rare].sum().item()), "both classes have the same weight"


def test_images_without_a_label_still_give_nothing(uneven):
    method = CE(balanced=True)
    batch = next(iter(Batches(uneven.train, 48)))
    method.prepare(build_model("resnet8", uneven.classes, uneven.size), batch, Answer())
    unknown = dataclasses.replace(batch, targets=torch.full_like(batch.labels, -1))
    assert method.loss(unknown, Output(torch.randn(48, 8)), Answer()).abs().sum() == 0


def test_without_a_training_set_it_says_so(uneven):
    batch = Batch(torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.long), torch.arange(2))
    with pytest.raises(UserError, match="ce:balanced=true counts the classes of the training set"):
        CE(balanced=True).prepare(build_model("resnet8", uneven.classes, uneven.size), batch, Answer())


@pytest.mark.parametrize("options", [{"smoothing": 0.1}, {"balanced": True}])
def test_options_of_classes_are_refused_for_another_task(options):
    data = pictures()
    student = build_model("resnet8", data.task, data.size)
    batch = next(iter(Batches(data.train, 4)))
    with pytest.raises(UserError, match="smoothing= and balanced= are for classification, but the task is brightness"):
        CE(**options).prepare(student, batch, Answer())
    assert CE().prepare(student, batch, Answer()) is student
