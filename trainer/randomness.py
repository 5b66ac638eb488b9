"""torch's generators during a run: what dropout and drop path draw is keyed by (seed, step, rank)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from labelstore.devices import backend_of
from trainer.sampler import hash_words

_NETWORK = 0x6E6574
"""First word of the key: apart from whatever else is keyed by (seed, step)."""


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """A block whose draws leave torch's generators of the CPU and of `device` as they were for the caller."""
    with torch.random.fork_rng(devices=[]):
        if device.type == "cpu":
            yield
            return
        module = torch.get_device_module(device)
        which = (device,) if backend_of(device).numbered else ()
        state = module.get_rng_state(*which)
        try:
            yield
        finally:
            module.set_rng_state(state, *which)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one optimiser step of one rank; nothing before it shows."""
    torch.manual_seed(int(hash_words(_NETWORK, seed, step, rank)[0]))
