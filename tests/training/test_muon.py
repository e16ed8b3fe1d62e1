"""The optimizer that moves convolutions by orthogonal matrices."""

import copy

import pytest
import torch
from torch import nn

from distilens.foundation.errors import UserError
from distilens.training.muon import LARGE, orthogonalised
from distilens.training.optimizers import OPTIMIZERS


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=False),
        nn.Flatten(),
        nn.Linear(16 * 16, 4),
    )


def step(module: nn.Module, optimizer: torch.optim.Optimizer, times: int = 1) -> float:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(12, 3, 8, 8, generator=generator), torch.arange(12) % 4
    for _ in range(times):
        loss = nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16), (256, 300)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.3, 1, min(shape))) @ v
    found = orthogonalised(matrix, steps=5)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert found.dtype == matrix.dtype
    rotated = u.T @ found @ v.T
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < (1e-4 if min(shape) < LARGE else 0.02)  # bfloat16


def test_convolutions_keep_their_norm_and_the_rest_is_plain_sgd():
    module, twin = network(), network()
    optimizer = OPTIMIZERS.build("muon:lr=0.1,rest_lr=0.05,weight_decay=0.01", module)
    plain = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    step(module, optimizer)
    step(twin, plain)
    for ours, theirs in ((module[0], twin[0]), (module[1], twin[1]), (module[5], twin[5])):
        assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    moved = module[3].weight.detach()
    assert not torch.allclose(moved, twin[3].weight)
    assert abs(moved.norm().item() - 16**0.5) < 0.1 * 16**0.5 + 0.1 * 4


def test_a_convolution_with_a_bias_has_a_norm_of_its_own():
    """Nothing normalises what comes out of it: held to a norm, it could not make what is larger."""
    torch.manual_seed(0)
    wanted = nn.Conv2d(16, 16, 1).requires_grad_(False)
    wanted.weight.mul_(12 / wanted.weight.norm())
    images = torch.randn(64, 16, 2, 2)
    left = {}
    for bias in (True, False):
        learning = nn.Conv2d(16, 16, 1, bias=bias)
        optimizer = OPTIMIZERS.build("muon:lr=0.1,rest_lr=0.1", learning)
        norms = []
        for step in range(150):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 150)
            optimizer.zero_grad()
            (learning(images) - wanted(images)).square().mean().backward()
            optimizer.step()
            norms.append(learning.weight.norm().item())
        left[bias] = (learning(images) - wanted(images)).square().mean().item()
        assert (max(norms) < 5) is not bias  # sqrt(16) and a step
    assert left[True] < 0.05 * left[False]


def test_transposed_convolutions_are_plain_sgd():
    """Their first dimension is what comes in: what turns a convolution would turn them the wrong way."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2))
    twin = copy.deepcopy(module)
    optimizer = OPTIMIZERS.build("muon:rest_lr=0.05,weight_decay=0", module)
    plain = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for each, its in ((module, optimizer), (twin, plain)):
        each(torch.ones(2, 8, 3, 3)).square().sum().backward()
        its.step()
    assert torch.allclose(module[0].weight, twin[0].weight, atol=1e-6)


def test_it_learns_and_its_state_resumes_exactly():
    module = network()
    optimizer = OPTIMIZERS.build("muon:lr=0.05,rest_lr=0.02", module)
    first = step(module, optimizer, 3)
    twin = copy.deepcopy(module)
    other = OPTIMIZERS.build("muon:lr=0.05,rest_lr=0.02", twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # the state that was loaded is shared otherwise
    last = step(module, optimizer, 20)
    assert last < first
    assert last == step(twin, other, 20)
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_frozen_parameters_are_left_alone():
    module = network()
    module[3].requires_grad_(False)
    before = module[3].weight.clone()
    step(module, OPTIMIZERS.build("muon", module))
    assert torch.equal(before, module[3].weight)


def test_bad_options_are_said():
    with pytest.raises(UserError, match="lr"):
        OPTIMIZERS.resolve("muon:lr=-1")
    with pytest.raises(UserError, match="Did you mean 'momentum'"):
        OPTIMIZERS.resolve("muon:momentun=0.9")
