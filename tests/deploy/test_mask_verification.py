"""The comparison of masks notices what differs, and says on how many places."""

import copy

import numpy as np
import pytest
import torch

import segments
from distilens.data.pipeline import batch_at
from distilens.deploy.exporters import as_model
from distilens.deploy.mask_verification import TIE, compare, compare_images, compare_split, differing
from distilens.deploy.shipped import Shipped
from distilens.deploy.verification import Student, compare_gradcam, verify


class File:
    """A runtime in PyTorch whose outputs can be changed."""

    batch = None

    def __init__(self, model, change=lambda logits, mask: (logits, mask), size=None):
        self.shipped, self.change = Shipped(model, size=size), change
        self.about = self.shipped.about()

    def __call__(self, images):
        with torch.no_grad():
            logits, mask = self.shipped(torch.from_numpy(images))
        return [values.numpy() for values in self.change(logits, mask)]


@pytest.fixture(scope="module")
def model():
    return segments.model(seed=1).eval()


def test_the_student_itself_has_no_difference(model):
    data = segments.pictures()
    found = verify(Student(model, data, {"test": teacher_of(data)}, images=3), as_model(File(model), model))
    test = found["answers"]["test"]
    assert test["n"] == len(data.test) and test["places"] == 24 * 32 * test["n"]
    assert test["different"] == 0 and test["same mask"]["share"] == 1 and test["largest"] < 1e-5
    assert test["metric"] == "mIoU" and test["unit"] == "%" and test["file"] == test["student"]
    assert test["apart"] == {"mean": 0, "low": 0, "high": 0, "n": test["n"]}
    assert test["agreement"] == test["student's agreement"] and 0 < test["agreement"]["accuracy"] < 1
    assert "top-1" not in str(found) and "calibration" not in test
    for explainer in found["maps"]["explainers"].values():
        assert explainer["cosine"]["mean"] == pytest.approx(1, abs=1e-4)
        assert explainer["insertion"]["mean"] == pytest.approx(explainer["student's insertion"]["mean"], abs=1e-4)


def teacher_of(data):
    return torch.from_numpy(data.test.targets).roll(1, 0)


def test_changed_places_are_counted_and_cost_miou(model):
    def turned(logits, mask):
        mask = mask.clone()
        mask[:, :6] = (mask[:, :6] + 1) % 3  # a quarter of the 24 rows
        return logits, mask

    data = segments.pictures()
    compared, answers = compare_split(model, as_model(File(model, turned), model), data.test)
    assert compared["same mask"] == pytest.approx({"share": 0.75, "low": 0.75, "high": 0.75, "n": len(data.test)})
    assert compared["different"] == len(data.test) and compared["largest"] < 1e-5
    targets = torch.from_numpy(data.test.targets)
    images = batch_at(data.test, torch.arange(len(targets))).images
    expected = answers.clone()
    expected[:, :6] = (expected[:, :6] + 2) % 3  # turned back: the masks of the student
    assert torch.equal(expected, model.task.compact(model.logits(images), targets))


def test_largest_and_mean_difference_are_of_the_logits(model):
    images = torch.rand(5, 3, 24, 32)

    def raised(logits, mask):
        logits = logits.clone()
        logits[0, :, :12] += 0.5
        return logits, mask

    found = compare_images(model, as_model(File(model, raised), model), images)
    assert found["largest"] == pytest.approx(0.5, abs=1e-4) and found["mean"] == pytest.approx(0.05, abs=1e-4)
    assert found["different"] == 0


def test_a_tie_may_be_decided_either_way_but_nothing_else():
    logits = torch.tensor([[0.0, TIE], [0.0, 10 * TIE]])[:, :, None, None]  # two images of one place, class 1 is larger
    other = torch.zeros(2, 1, 1, dtype=torch.uint8)
    assert differing(logits, other + 1).tolist() == [False, False]
    assert differing(logits, other).tolist() == [False, True]
    assert differing(logits, other + 2).tolist() == [True, True], "there is no class 2"


def test_a_logit_that_is_not_finite_is_different(model):
    images = torch.rand(2, 3, 24, 32)
    logits, mask = Shipped(model)(images)
    broken = logits.detach().clone()
    broken[1, 0, 3, 4] = float("nan")
    assert compare(model, images, (24, 32), broken, mask).different.tolist() == [False, True]


def test_a_file_of_another_size_is_compared_at_its_own_size(model):
    from distilens.deploy.shipped import with_entrance

    data, size = segments.pictures(), (30, 20)
    student = Student(with_entrance(model, size), data, images=2)
    found = verify(student, as_model(File(model, size=size), model))
    test = found["answers"]["test"]
    assert test["places"] == 30 * 20 * test["n"] and test["different"] == 0
    assert test["apart"]["mean"] == pytest.approx(0, abs=0.05), "targets have the size of the data"
    assert found["maps"]["explainers"]["occlusion"]["cosine"]["mean"] == pytest.approx(1, abs=1e-3)


def test_another_head_changes_masks_and_maps(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.network.head.parameters():
            weight.neg_()
    student = Student(model, segments.pictures(), images=3)
    found = verify(student, as_model(File(other), model))
    assert found["answers"]["test"]["different"] == found["answers"]["test"]["n"]
    assert found["maps"]["explainers"]["occlusion"]["cosine"]["mean"] < 0, "the aim is that of the student"
    assert compare_gradcam(student, copy.deepcopy(model))["cosine"]["mean"] == pytest.approx(1)


def test_without_data_examples_are_compared(model):
    found = verify(Student(model, None), as_model(File(model), model))
    assert found["answers"]["examples"]["different"] == 0 and found["maps"] == {}
    assert np.isclose(found["answers"]["examples"]["same mask"]["share"], 1)
