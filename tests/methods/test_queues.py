"""Queues hold the newest entries of each class, and nothing else; against Python lists."""

import pytest
import torch

from distilens.foundation.errors import UserError
from distilens.methods import queues
from distilens.methods.queues import Queues, pixels_of_classes, regions_of_classes

CPU = torch.device("cpu")


def numbered(queue: Queues, number: int) -> list[float]:
    """The stored entries of a class, sorted."""
    return sorted(queue.entries[number, : int(queue.filled[number]), 0].tolist())


def test_a_full_queue_drops_the_oldest():
    """As published, the newest entries are overwritten once a queue is full."""
    generator = torch.Generator().manual_seed(0)
    queue = Queues(3, 5, 1, name="test", device=CPU)
    lists: list[list[float]] = [[], [], []]
    value = 0
    for _ in range(12):
        vectors = torch.arange(value, value + 2 * 3 * 4).view(2, 3, 4, 1).float()
        there = torch.rand(2, 3, 4, generator=generator) < 0.4
        there[:, 2] = False
        value += vectors.numel()
        queue.push(vectors, there)
        for image in range(2):
            for number in range(3):
                lists[number] += vectors[image, number, there[image, number], 0].tolist()
        for number in range(3):
            assert numbered(queue, number) == sorted(lists[number][-5:])
            assert queue.filled[number] == min(5, len(lists[number]))
    assert len(lists[0]) > 15 and queue.filled[2] == 0


def test_more_vectors_than_places_leave_the_last():
    queue = Queues(1, 3, 1, name="test", device=CPU)
    queue.push(torch.arange(8.0).view(2, 1, 4, 1), torch.ones(2, 1, 4, dtype=torch.bool))
    assert numbered(queue, 0) == [5, 6, 7]


def test_places_that_were_never_filled_are_not_drawn():
    """As published, queues start with random vectors, and these are used at once."""
    queue = Queues(3, 50, 2, name="test", device=CPU)
    there = torch.tensor([[[True, True], [True, False], [False, False]]])
    queue.push(torch.arange(1.0, 13).view(1, 3, 2, 2), there)
    entries, known = queue.draw(40, torch.Generator().manual_seed(0))
    assert entries.shape == (3, 40, 2) and known.tolist() == [[True] * 40, [True] * 40, [False] * 40]
    assert entries[0].unique(dim=0).tolist() == [[1, 2], [3, 4]]
    assert entries[1].unique(dim=0).tolist() == [[5, 6]]
    again = queue.draw(40, torch.Generator().manual_seed(0))[0]
    assert torch.equal(entries, again)
    assert not torch.equal(entries, queue.draw(40, torch.Generator().manual_seed(1))[0])


def test_queues_are_saved_with_their_positions():
    queue, other = (Queues(2, 3, 1, name="test", device=CPU) for _ in range(2))
    queue.push(torch.arange(4.0).view(1, 2, 2, 1), torch.ones(1, 2, 2, dtype=torch.bool))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(torch.arange(10, 14.0).view(1, 2, 2, 1), torch.ones(1, 2, 2, dtype=torch.bool))
    assert numbered(other, 0) == numbered(queue, 0) == [1, 10, 11]
    assert not list(queue.buffers())  # a launcher would broadcast them at every step


def test_the_pixels_of_a_class_are_of_that_class():
    """As published, the queue of each class gets the first pixels of the image."""
    own = torch.tensor([[0, 1, -1, 1, 0, 1, 1, -1], [2, 2, -1, -1, -1, -1, -1, 0]])
    vectors = torch.stack([torch.arange(8.0), own.float()[0]])[None].repeat(2, 1, 1)
    vectors[1, 1] = own[1].float()
    pixels, there = pixels_of_classes(vectors, own, torch.rand(2, 8), classes=3, count=3)
    assert there.sum(2).tolist() == [[2, 3, 0], [1, 0, 2]]
    for image in range(2):
        for number in range(3):
            chosen = pixels[image, number][there[image, number]]
            assert (chosen[:, 1] == number).all() and len(chosen[:, 0].unique()) == len(chosen)
    draws = [pixels_of_classes(vectors, own, torch.rand(2, 8), classes=3, count=1)[0][0, 1, 0, 0] for _ in range(60)]
    assert {float(place) for place in draws} == {1.0, 3.0, 5.0, 6.0}


def test_the_region_of_a_class_is_the_direction_of_its_mean():
    own = torch.tensor([[0, 1, -1, 1]])
    vectors = torch.randn(1, 5, 4)
    regions, there = regions_of_classes(vectors, own, classes=3)
    assert there[0, :, 0].tolist() == [True, True, False]
    mean = vectors[0, :, [1, 3]].mean(1)
    assert torch.allclose(regions[0, 1, 0], mean / mean.norm())
    assert torch.allclose(regions[0, 0, 0], vectors[0, :, 0] / vectors[0, :, 0].norm())


def test_queues_that_do_not_fit_are_refused(monkeypatch):
    class Free:
        available = 2**20

    monkeypatch.setattr(queues.psutil, "virtual_memory", Free)
    with pytest.raises(UserError, match=r"cirkd stores 20,000 × 64 numbers for each of 19 classes.*use shorter queues"):
        Queues(19, 20_000, 64, name="cirkd", device=CPU)
