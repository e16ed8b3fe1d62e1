"""The method `dice` is its loss, also of mixed images, and adds up with `ce`."""

import torch

from dense import TASK, first_batch, network, pictures
from distilens import losses
from distilens.core import Answer, Batch, Mixed, Objective, Output
from distilens.methods import build_methods
from distilens.methods.dice import Dice
from distilens.methods.labels import of_labels
from distilens.methods.lovasz import Lovasz
from distilens.tasks import VOID

LOGITS = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
TARGETS, OTHERS = torch.randint(0, 3, (2, 4, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
OUTPUT = Output(LOGITS, size=(8, 8), task=TASK)


def batch_of(targets: torch.Tensor, mixed: Mixed | None = None) -> Batch:
    return Batch(torch.rand(len(targets), 3, 8, 8), targets, torch.arange(len(targets)), mixed=mixed)


def test_it_is_the_loss_with_its_option():
    found = Dice(smooth=2.0).loss(batch_of(TARGETS), OUTPUT, Answer())
    assert torch.equal(found, losses.dice(LOGITS, TARGETS, smooth=2.0, reduction="none"))


def test_mixed_images_have_the_targets_of_both():
    share = torch.tensor([0.0, 0.3, 0.9, 1.0])
    for method, loss in ((Dice(), losses.dice), (Lovasz(), losses.lovasz)):
        own, other = (loss(LOGITS, targets, reduction="none") for targets in (TARGETS, OTHERS))
        found = method.loss(batch_of(TARGETS, Mixed(OTHERS, share)), OUTPUT, Answer())
        assert torch.allclose(found, share * own + (1 - share) * other)
        plain = of_labels(batch_of(TARGETS), lambda targets, loss=loss: loss(LOGITS, targets, reduction="none"))
        assert torch.equal(plain, own)


def test_labels_alone_teach_the_network():
    """The sum of the three label losses falls, and void places are not learnt."""
    data = pictures()
    batch = first_batch(data, 8)
    assert (batch.targets == VOID).any()
    objective = Objective(network(8).train(), build_methods(["ce", "dice", "lovasz"]))
    objective.prepare(batch, Answer())
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.03)
    totals = []
    for _ in range(20):
        terms = objective(batch, Answer())
        assert set(terms) == {"ce", "dice", "lovasz"}
        total = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]
