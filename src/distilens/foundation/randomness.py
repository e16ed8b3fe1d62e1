"""Randomness that depends only on its keys (seed, epoch, index, name), never on order, batch or device.

Augmentation, overlays and dropout of maps use it. So variant k of image i is the same picture in every run, process and batch,
and stored answers can be replayed exactly.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def mix_bits(state: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit changes every output bit with probability 1/2."""
    state = (state ^ shift_right(state, 30)) * -0x40A7B892E31B1A47
    state = (state ^ shift_right(state, 27)) * -0x6B2FB644ECCEEE15
    return state ^ shift_right(state, 31)


def shift_right(state: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's own shift keeps the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def uniform(name: str, index: Tensor, *keys: int, count: int = 1) -> Tensor:
    """Numbers in [0, 1), `[b, count]`, one row per sample, from the keys (seed, epoch, ...), the sample's index and a name.

    They are float32 with 24 random bits, so 1.0 never occurs.
    """
    state = torch.full_like(index, zlib.crc32(name.encode()), dtype=torch.int64)
    for key in keys:
        state = mix_bits(state + (int(key) & 0x7FFFFFFFFFFFFFFF) - 0x61C8864680B583EB)
    state = mix_bits(state + index.to(torch.int64) - 0x61C8864680B583EB)
    columns = torch.arange(1, count + 1, device=index.device, dtype=torch.int64) * -0x61C8864680B583EB
    bits = shift_right(mix_bits(state[:, None] + columns), 40)
    return bits.to(torch.float32) / (1 << 24)


def generator(name: str, *keys: int) -> torch.Generator:
    """A CPU generator seeded by a name and keys, for random numbers of a whole set, such as an epoch's order."""
    state = uniform(name, torch.zeros(1, dtype=torch.int64), *keys, count=2)[0]
    return torch.Generator().manual_seed(int(state[0].item() * (1 << 24)) << 24 | int(state[1].item() * (1 << 24)))
