"""Which image blocks this process may write, kept alive by a heartbeat."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from labelstore.catalogue import Catalogue
from labelstore.catalogue.records import Lease
from labelstore.errors import ConflictError, LabelStoreError, LeaseLost

LEASE_SECONDS = 120.0
HEARTBEAT_SECONDS = 20.0

# a warning: without a handler of the caller's own, Python writes it to stderr
_LOG = logging.getLogger(__name__)


def owner_name() -> str:
    """Identity of this process that other processes of the same machine can check: host, namespace, pid, start."""
    return f"{_machine()}/{os.getpid()}/{_start_time(os.getpid())}/{os.urandom(3).hex()}"


def is_dead(owner: str) -> bool:
    """True where the owner was a process of this very machine and is gone; False when that cannot be known."""
    try:
        host, namespace, boot, number, started, _ = owner.split("/")
        pid = int(number)
    except ValueError:
        return False
    if not (namespace and boot and pid > 0 and f"{host}/{namespace}/{boot}" == _machine()):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass  # somebody else's process: it is there
    # a /proc that hides the processes of other users tells nothing
    now = _start_time(pid)
    return bool(now and started) and now != started


def process_of(owner: str) -> str:
    """The owner of a lease in words: its process and machine; what is no owner of ours is quoted."""
    parts = owner.split("/")
    if len(parts) == 6 and parts[3].isdecimal() and parts[0].isascii() and parts[0].isprintable():
        return f"process {parts[3]} on {parts[0]}"
    return ascii(owner)


class LeaseKeeper:
    """Acquires image blocks of one group and renews them in the background until they are let go.

    `blocks` are the block numbers in the order to be tried, or how many there are. `identity` is the group's
    (`Groups.identity`) as its caller knows it, now if not given: once it is another, because the group was
    dropped or created again, `acquire` raises ConflictError and no held block can be committed.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        group: str,
        blocks: int | Sequence[int],
        shards_per_block: int,
        seconds: float = LEASE_SECONDS,
        identity: str | None = None,
    ) -> None:
        self.owner = owner_name()
        self._catalogue = catalogue
        self._identity = catalogue.groups.identity(group) if identity is None else identity
        self._group = group
        self._blocks = blocks
        self._shards_per_block = shards_per_block
        self._seconds = seconds
        self._held: dict[int, Lease] = {}
        self._lost: dict[int, str] = {}
        self._complete: set[int] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
        self._thread.start()

    def acquire(self) -> Lease | None:
        """The next block that is neither committed nor leased to somebody alive, or None."""
        leases = self.acquire_blocks(1)
        return leases[0] if leases else None

    def acquire_blocks(self, count: int) -> list[Lease]:
        """The next blocks that are neither committed nor leased to somebody alive, at most `count`."""
        return [lease for lease, _ in self.acquire_of(self._blocks, count)]

    def acquire_of(
        self, blocks: int | Sequence[int], count: int
    ) -> list[tuple[Lease, Collection[int]]]:
        """`acquire_blocks` among these, each with its committed crop shards."""

        def work() -> list[tuple[Lease, Collection[int]]]:
            self._free_the_dead()
            leases = self._catalogue.leases.acquire_blocks(
                self._group,
                blocks,
                self.owner,
                self._seconds,
                done=self._shards_per_block,
                count=count,
                of=self._identity,
                complete=self._complete,
            )
            numbers = [lease.block for lease in leases]
            committed = self._catalogue.ledger.committed_of(self._group, numbers)
            return [(lease, committed.get(lease.block, ())) for lease in leases]

        with self._lock:
            granted = self._catalogue.together(work)
            for lease, _ in granted:
                self._held[lease.block] = lease
                self._lost.pop(lease.block, None)
            return granted

    def check_identity(self) -> None:
        """ConflictError once the group was dropped, or another got its name."""
        self._catalogue.leases.check_identity(self._group, self._identity)

    def forget(self, *blocks: int, released: bool = False) -> None:
        """Let go of blocks that were committed, or lost; `released` where the catalogue knows it already."""
        with self._lock:
            leases = [self._held.pop(block) for block in blocks if block in self._held]
        if leases and not released:
            # not left to expire: who grows or drops the group next need not wait for them
            self._catalogue.leases.release(*leases)

    def current(self, lease: Lease) -> Lease:
        """The lease with its newest expiry; LeaseLost if the heartbeat found it taken."""
        with self._lock:
            if lease.block in self._lost:
                raise LeaseLost(self._lost[lease.block])
            return self._held[lease.block]

    def close(self) -> None:
        """Release everything that is still held."""
        self._stop.set()
        self._thread.join()
        self.forget(*self._held)

    def _free_the_dead(self) -> None:
        # a killed process of this machine need not be waited for; fencing covers a mistake
        for lease in self._catalogue.leases.held(self._group):
            if lease.owner != self.owner and is_dead(lease.owner):
                self._catalogue.leases.release(lease)

    def _beat(self) -> None:
        while not self._stop.wait(min(HEARTBEAT_SECONDS, self._seconds / 4)):
            with self._lock:
                leases = list(self._held.values())
                if not leases:
                    continue
                try:
                    renewed = self._catalogue.leases.renew_blocks(leases, self._seconds)
                except LabelStoreError:
                    # a busy catalogue: the next beat tries again, and the commit checks anyway
                    continue
                for before, after in zip(leases, renewed, strict=True):
                    if isinstance(after, LeaseLost):
                        self._lost[before.block] = str(after)
                        del self._held[before.block]
                    else:
                        self._held[before.block] = after


class Patience:
    """Waits for other workers to finish their blocks; `waits` False: not at all."""

    def __init__(self, catalogue: Catalogue, group: str, *, waits: bool = True) -> None:
        self._catalogue = catalogue
        self._group = group
        self._waits = waits
        self._seen: object = None
        self._waited = 0.0
        self._told = False

    def wait(self, blocks: Sequence[int], *, seconds: float, most: float) -> None:
        """Sleep for `seconds`, while others are at the `blocks` that are not committed yet.

        ConflictError after `most` seconds in which none was committed and no lease on one was renewed.
        """
        wanted = set(blocks)
        leases = [
            lease for lease in self._catalogue.leases.held(self._group) if lease.block in wanted
        ]
        seen = len(blocks), leases
        if seen != self._seen:
            self._seen, self._waited = seen, 0.0
        if leases and not self._told:
            self._told = True
            _LOG.warning("%s: waiting for %s", self._group, self._words(leases[0]))
        if self._waited > most or not self._waits:
            whom = self._words(leases[0]) if leases else f"image block {blocks[0]}"
            raise ConflictError(
                f"{self._group}: waited {self._waited:.0f} s for {whom}, which does not finish it; "
                "run the command again later, or look who holds it (`labelstore leases`)"
            )
        time.sleep(seconds)
        self._waited += seconds

    def _words(self, lease: Lease) -> str:
        left = lease.expires - self._catalogue.leases.now()
        until = time.strftime("%H:%M:%S", time.localtime(lease.expires))
        return (
            f"image block {lease.block}, leased to {process_of(lease.owner)} until {until} (for {left:.0f} s) "
            "unless it renews the lease"
        )


def _machine() -> str:
    namespace = _read_link("/proc/self/ns/pid")
    boot = _read_text("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{namespace}/{boot}".replace(" ", "")


def _start_time(pid: int) -> str:
    stat = _read_text(f"/proc/{pid}/stat")
    # the second field is a name that may hold spaces; the start time is the 20th after it
    return stat.rpartition(")")[2].split()[19] if stat else ""


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _read_link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


Progress = Callable[[int, int], None]
