"""cirkd: its three terms written out in NumPy, its queues, and what its draws depend on."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from dense import TASK, Batch, first_batch, network, pictures
from distilens import losses
from distilens.core import Answer, Objective, Output
from distilens.losses.places import nearest
from distilens.methods import build_methods
from distilens.methods.cirkd import CIRKD
from distilens.tasks import VOID
from distilens.teachers import LiveTeacher

SMALL = "tap=late,stored_pixels=40,stored_regions=7,drawn_pixels=30,drawn_regions=12"


@pytest.fixture(scope="module")
def batch() -> Batch:
    return first_batch(pictures())


def prepared(options: str, batch: Batch) -> tuple[CIRKD, Output, Answer]:
    teacher = LiveTeacher(network(8, seed=1))
    objective = Objective(network().train(), build_methods([f"cirkd:{options}"]))
    answer = teacher(batch, objective.needs)
    torch.manual_seed(2)
    objective.prepare(batch, answer)
    with torch.no_grad():
        output = objective.student(batch.view)
    (method,) = objective.terms().values()
    assert isinstance(method, CIRKD)
    return method, output, answer


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def rows_of(feature: torch.Tensor) -> np.ndarray:
    return feature.detach().double().flatten(2).transpose(1, 2).numpy()


@pytest.mark.parametrize("kind", ["pixels", "regions"])
def test_the_terms_of_memory_are_divergences_of_similarities_to_the_drawn_entries(kind, batch):
    other = "regions" if kind == "pixels" else "pixels"
    method, output, answer = prepared(f"{SMALL},batch=0,{other}=0,{kind}=0.5,temperature=0.2", batch)
    method.eval()  # of the projector
    found = method.loss(batch, output, answer)
    entries, there = method.draw(kind, batch)
    assert there.all() and len(entries) == {"pixels": 30, "regions": 12}[kind]
    ours = unit(rows_of(method.projector(output.features["late"])))
    theirs = unit(rows_of(answer.features["late"]))
    q = entries.double().numpy()
    p, t = (log_softmax(rows @ q.T / 0.2, axis=2) for rows in (ours, theirs))
    expected = 0.5 * (np.exp(t) * (t - p)).sum(2).mean(1)
    assert np.allclose(found.detach().numpy(), expected, rtol=1e-3)


def test_all_terms_add_up_and_the_first_is_the_loss_between_images(batch):
    parts = []
    for factors in ("batch=2,pixels=0,regions=0", "batch=0,pixels=3,regions=0", "batch=0,pixels=0,regions=5"):
        method, output, answer = prepared(f"{SMALL},pool=1,{factors}", batch)
        parts.append(method.loss(batch, output, answer))
    given = output.features["late"], answer.features["late"]
    assert torch.allclose(parts[0], 2 * losses.cross_image(*given, pool=1, reduction="none"))
    method, output, answer = prepared(f"{SMALL},pool=1,batch=2,pixels=3,regions=5", batch)
    assert torch.allclose(method.loss(batch, output, answer), sum(parts), rtol=1e-4)


def test_the_queues_hold_directions_of_the_teachers_features_at_places_of_the_class(batch):
    method, output, answer = prepared(SMALL, batch)
    method.loss(batch, output, answer)
    own = nearest(batch.targets, output.features["late"]).flatten(1).numpy()
    theirs = unit(rows_of(answer.features["late"]))
    for kind, size in (("pixels", 40), ("regions", 7)):
        queues = method.queues[kind]
        for number in range(TASK.outputs):
            if kind == "pixels":
                wanted, most = theirs[own == number], sum(min(16, (row == number).sum()) for row in own)
            else:
                present = [image for image in range(len(own)) if (own[image] == number).any()]
                wanted = unit(np.stack([theirs[image][own[image] == number].mean(0) for image in present]))
                most = len(present)
            held = queues.entries[number, : int(queues.filled[number])].double().numpy()
            assert len(held) == min(size, most) > 0
            apart = np.abs(held[:, None] - wanted[None]).max(2).min(1)
            assert apart.max() < 1e-5, (kind, number)


def test_without_labels_nothing_is_stored_and_the_terms_of_memory_are_0(batch):
    method, output, answer = prepared(f"{SMALL},batch=0", batch)
    void = batch.replaced(targets=torch.full_like(batch.targets, VOID))
    for _ in range(2):
        found = method.loss(void, output, answer)
        found.sum().backward()
        assert not found.any()
        assert all(not queues.pushed.any() for queues in method.queues.values())
    assert all(p.grad is not None and p.grad.isfinite().all() and not p.grad.any() for p in method.parameters())
    assert method.loss(batch, output, answer).min() > 0


def test_a_class_that_was_never_seen_has_no_entries(batch):
    method, output, answer = prepared(f"{SMALL},batch=0,regions=0", batch)
    first = batch.replaced(targets=batch.targets.masked_fill(batch.targets == 1, VOID))
    method.eval()
    found = method.loss(first, output, answer)
    entries, there = method.draw("pixels", first)
    assert there.view(3, -1).any(1).tolist() == [True, False, True]
    ours, theirs = unit(rows_of(method.projector(output.features["late"]))), unit(rows_of(answer.features["late"]))
    q = entries[there].double().numpy()
    p, t = (log_softmax(rows @ q.T / 0.1, axis=2) for rows in (ours, theirs))
    assert np.allclose(found.detach().numpy(), 0.1 * (np.exp(t) * (t - p)).sum(2).mean(1), rtol=1e-3)


def test_draws_depend_on_seed_epoch_and_step_and_not_on_torchs_state(batch):
    method, output, answer = prepared(SMALL, batch)
    method.loss(batch, output, answer)
    entries = method.draw("pixels", batch)[0]
    torch.rand(5)
    assert torch.equal(method.draw("pixels", batch)[0], entries)
    for changed in ({"seed": 1}, {"epoch": 1}, {"step": 1}):
        assert not torch.equal(method.draw("pixels", batch.replaced(**changed))[0], entries)


def test_a_copy_from_a_checkpoint_goes_on_alike(batch):
    method, output, answer = prepared(SMALL, batch)
    fresh = copy.deepcopy(method)
    method.loss(batch, output, answer)
    fresh.load_state_dict(method.state_dict())
    again = batch.replaced(step=1)
    assert torch.equal(method.loss(again, output, answer), fresh.loss(again, output, answer))
    assert method.remembered() == 4 * 8 * 3 * (41 + 8)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_features_are_finite_also_in_bfloat16(value, batch):
    method, output, answer = prepared(SMALL, batch)
    flat = torch.full_like(output.features["late"], value).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = method.loss(batch, Output(output.logits, {"late": flat}, size=output.size), answer)
    found.sum().backward()
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_a_student_that_follows_loses_less(batch):
    """The terms of memory can be learnt: the projector and the student are trained by them."""
    teacher = LiveTeacher(network(8, seed=1))
    objective = Objective(network().train(), build_methods([f"cirkd:{SMALL}"]))
    answer = teacher(batch, objective.needs)
    objective.prepare(batch, answer)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    values = []
    for step in range(12):
        (term,) = objective(batch.replaced(step=step), answer).values()
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        values.append(term.item())
    assert values[-1] < 0.9 * values[0]
