"""A seed means the same alone and in threads of one process."""

import threading

import pytest
import torch

import distilens


@pytest.mark.filterwarnings("ignore:.*it may know nothing of these data")  # it is untrained
def test_trainings_in_threads_take_turns(cache):
    found = {}

    def work(name):
        settings = {"epochs": 1, "batch_size": 16, "precision": "float32"}
        student, _ = distilens.distill(
            "resnet8", "resnet8", "shapes:train=64,test=40,size=16", ["ce", "kd"], settings=settings, seed=7
        )
        found[name] = torch.cat([weight.flatten() for weight in student.network.parameters()])

    work("alone")
    both = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert torch.equal(found[0], found["alone"])
    assert torch.equal(found[1], found["alone"])
