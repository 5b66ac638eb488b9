"""torch's generators during a run: what dropout and drop path draw is keyed by (seed, step, rank)."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from trainer.sampler import hash_words

_NETWORK = 0x6E6574
"""First word of the key: apart from whatever else is keyed by (seed, step)."""


def own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """A block whose draws leave torch's generators of the CPU and of `device` as they were for the caller."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one optimiser step of one rank; nothing before it shows."""
    torch.manual_seed(int(hash_words(_NETWORK, seed, step, rank)[0]))
