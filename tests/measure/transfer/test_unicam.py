"""UniCAM: the gradient of a statistic over a reference set, at one image's features, as a map."""

import pytest
import torch
from torch.nn.functional import one_hot

from distilens.foundation.errors import UserError
from distilens.measure.transfer import unicam as module
from distilens.measure.transfer.distance_correlation import distance_correlation, semi_partial
from distilens.measure.transfer.unicam import UniCAM, as_rows, tapped
from distilens.models import build_model

CLASSES = tuple("abcd")


def network(name: str = "resnet8", seed: int = 0):
    torch.manual_seed(seed)
    return build_model(name, CLASSES, (32, 32)).eval()


@pytest.fixture(scope="module")
def world():
    """A student, a base, a teacher, a reference set with labels, and images to explain with theirs."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.rand(28, 3, 32, 32, generator=generator)
    labels = torch.arange(28) % 4
    pixels += labels[:, None, None, None] * torch.tensor([0.05, 0, -0.05])[:, None, None]
    return (
        network(seed=1),
        network(seed=2),
        network("resnet14", 3),
        pixels[:24].clamp(0, 1),
        labels[:24],
        pixels[24:].clamp(0, 1),
        labels[24:],
    )


def by_hand(model, other, images, labels, image, label, features, tap="last"):
    """The published way for one image: all features of the set with a graph, autograd to the features of the last."""
    pixels, task = torch.cat([images, image[None]]), one_hot(torch.cat([labels, label[None]]), 4).double()
    feature = tapped(model, pixels, tap).double().requires_grad_()
    rows = as_rows(feature, features)
    if other is None:
        value = distance_correlation(rows, task)
    else:
        value = semi_partial(rows, task, as_rows(tapped(other, pixels, tap), features).double())
    (gradient,) = torch.autograd.grad(value, feature)
    weights = gradient[-1].mean((1, 2))
    return torch.einsum("k,kij->ij", weights, feature[-1].detach()).relu().float()


@pytest.mark.parametrize("features", ["pooled", "flat"])
@pytest.mark.parametrize("alone", [False, True])
def test_it_is_the_gradient_over_the_whole_set(world, features, alone):
    student, base, _, images, labels, others, theirs = world
    explain = UniCAM(student, None if alone else base, images, labels, features=features)
    maps = explain(others, theirs)
    assert maps.shape == (4, 8, 8)
    assert maps.any()
    for image, label, found in zip(others, theirs, maps, strict=True):
        expected = by_hand(student, None if alone else base, images, labels, image, label, features)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(maps.max()))


def test_an_image_of_the_reference_set_is_explained_in_its_own_place(world):
    student, base, _, images, labels, others, theirs = world
    explain = UniCAM(student, base, images, labels)
    among = torch.tensor([3, -1, 17])
    pixels, task = torch.stack([images[3], others[0], images[17]]), torch.stack([labels[3], theirs[0], labels[17]])
    maps = explain(pixels, task, among=among)
    kept = torch.arange(24) != 3
    alone = UniCAM(student, base, images[kept], labels[kept])(images[3:4], labels[3:4])
    assert torch.allclose(maps[:1], alone, rtol=1e-4, atol=1e-6 * float(alone.max()))
    assert torch.allclose(maps[1:2], explain(others[:1], theirs[:1]), rtol=1e-4, atol=1e-9)


def test_another_architecture_at_other_taps(world):
    student, _, teacher, images, labels, others, theirs = world
    found = UniCAM(teacher, student, images, labels, tap="layer2", other_tap="layer3")(others, theirs)
    assert found.shape == (4, 16, 16)
    assert found.any()


def test_images_at_a_time_change_nothing(world, monkeypatch):
    student, base, _, images, labels, others, theirs = world
    explain = UniCAM(student, base, images, labels)
    whole = explain(others, theirs)
    monkeypatch.setattr(module, "AT_ONCE", 1)
    assert torch.allclose(explain(others, theirs), whole, rtol=1e-5, atol=1e-9)


def test_the_same_model_twice_has_nothing_that_it_alone_knows(world):
    student, _, _, images, labels, others, theirs = world
    assert not UniCAM(student, student, images, labels)(others, theirs).any()


def test_one_class_says_nothing(world):
    student, base, _, images, labels, others, theirs = world
    assert not UniCAM(student, base, images, labels * 0)(others, theirs * 0).any()


def test_labels_are_embeddings_of_their_classes(world):
    student, base, _, images, labels, others, theirs = world
    names = torch.eye(4) * 3 + 1  # all as far from each other, as one-hot rows are
    ours = UniCAM(student, base, images, labels)(others, theirs)
    again = UniCAM(student, base, images, names[labels])(others, names[theirs])
    assert torch.allclose(ours, again, rtol=1e-4, atol=1e-6 * float(ours.max()))


def test_the_models_are_left_as_they_were(world):
    student, base, _, images, labels, others, theirs = world
    before = [{key: value.clone() for key, value in model.state_dict().items()} for model in (student, base)]
    with torch.inference_mode():
        maps = UniCAM(student.train(), base, images, labels)(others, theirs)
    assert maps.any()
    assert student.training
    assert all(parameter.grad is None for parameter in student.parameters())
    for model, state in zip((student.eval(), base), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_explained_is_said(world):
    student, base, _, images, labels, others, theirs = world
    with pytest.raises(UserError, match="for 23 images, but the reference set has 24"):
        UniCAM(student, base, images, labels[1:])
    with pytest.raises(UserError, match="the reference set has 3 images: take at least 4"):
        UniCAM(student, base, images[:3], labels[:3])
    assert UniCAM(student, base, images[:4], labels[:4])(others, theirs).shape == (4, 8, 8)
    with pytest.raises(UserError, match="without a label"):
        UniCAM(student, base, images, labels - 1)
    explain = UniCAM(student, base, images, torch.eye(5)[labels])
    with pytest.raises(UserError, match="the embeddings have 3 numbers, but those of the reference set have 5"):
        explain(others, torch.eye(3)[theirs.clamp(max=2)])
    with pytest.raises(UserError, match="for 3 images, but 4 images are to be explained"):
        explain(others, torch.eye(5)[theirs[1:]])
    with pytest.raises(UserError, match="layer9"):
        UniCAM(student, base, images, labels, tap="layer9")
