"""The processes of one training under torchrun: who is who, and the few things they tell each other.

Without torchrun there is one rank, and nothing here does anything. Gradients travel by
DistributedDataParallel; this is the rest: who reads, who writes, when all of them stop.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from labelstore.devices import accelerator, backend_of
from labelstore.errors import LabelStoreError, UsageError

T = TypeVar("T")


class RankLost(LabelStoreError):
    """Another rank of this training ended or does not answer."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `world_size` ones."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes the run folder and speaks."""
        return self.rank == 0

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, by rank: plain values, and tensors on the CPU."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def largest(self, value: int) -> int:
        """The largest of all ranks' numbers, cheap enough for every step."""
        if self.world_size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number)

    def from_each(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank and return all results, by rank; an error of one ends the others silently."""
        if self.world_size == 1:
            return [action()]
        value, code = None, 0
        try:
            value = action()
        except LabelStoreError as error:
            code = error.exit_code
            raise
        except BaseException:
            code = 1
            raise
        finally:
            # also on the way out of an error, since the others wait for it
            answers = self.gathered((value, code))
        failed = next((code for _, code in answers if code), 0)
        if failed:
            raise SystemExit(failed)
        return [value for value, _ in answers]

    def on_first(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and return its result on every rank; an error of rank 0 ends the others silently."""
        return self._shared(action, leaders=[0] * self.world_size)

    def on_node_leader(self, action: Callable[[], T]) -> T:
        """Run `action` on the node's first rank and return its result on all of the node; errors as in `on_first`."""
        own = self.rank - self.local_rank
        return self._shared(action, leaders=self.gathered(own))

    def _shared(self, action: Callable[[], T], *, leaders: Sequence[int]) -> T:
        if self.world_size == 1:
            return action()
        leads = leaders[self.rank] == self.rank
        answers = self.from_each(lambda: action() if leads else None)
        return answers[leaders[self.rank]]  # type: ignore[return-value]

    def same_buffers(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers: batch norm's statistics are each rank's own while it trains."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started, joined until the block ends; one rank without torchrun.

    UsageError where they do not find each other; RankLost in the others when one of them ends early.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        yield Ranks()
        return
    numbers = {
        name: _number(name.upper(), default)
        for name, default in (
            ("rank", None),
            ("world_size", None),
            ("local_rank", 0),
            ("local_world_size", 1),
        )
    }
    joined_before = dist.is_initialized()
    if not joined_before:
        # each operation goes to the backend of its tensors' device
        try:
            dist.init_process_group(exchange())
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"the {numbers['world_size']} processes of this training do not find each other ({reason}): "
                "start them with torchrun"
            ) from error
    try:
        with _named_losses(numbers["rank"]):
            yield Ranks(**numbers)
    finally:
        if not joined_before:
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def exchange() -> str:
    """Backend of torch.distributed: gloo those of the CPU, nccl or xccl an accelerator's."""
    found = accelerator()
    own = None if found is None else backend_of(found).ranks
    has = getattr(dist, f"is_{own}_available", None)
    return f"cpu:gloo,{found}:{own}" if callable(has) and has() else "gloo"


@contextlib.contextmanager
def _named_losses(rank: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        if isinstance(error, LabelStoreError) or not _is_lost_connection(error):
            raise
        raise RankLost(
            f"rank {rank} lost the others: one of them ended, its own message says why; start all of them again "
            "with `resume`"
        ) from error


def _is_lost_connection(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return any(
        word in text for word in ("gloo", "nccl", "xccl", "connection", "socket closed", "peer")
    )


def _number(variable: str, default: int | None) -> int:
    text = os.environ.get(variable, "" if default is None else str(default))
    if not text.isdecimal():
        raise UsageError(f"{variable}={text!r} in the environment: start the ranks with torchrun")
    return int(text)
