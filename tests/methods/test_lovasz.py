"""The method `lovasz` is its loss. Mixed images: see test_dice.py."""

import torch

from dense import TASK
from distilens import losses
from distilens.core import Answer, Batch, Output
from distilens.methods.lovasz import Lovasz


def test_it_is_the_loss():
    logits, targets = torch.randn(4, 3, 4, 4), torch.randint(0, 3, (4, 8, 8)).byte()
    batch = Batch(torch.rand(4, 3, 8, 8), targets, torch.arange(4))
    found = Lovasz().loss(batch, Output(logits, size=(8, 8), task=TASK), Answer())
    assert torch.equal(found, losses.lovasz(logits, targets, reduction="none"))
