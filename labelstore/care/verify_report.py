"""What `verify` found: problems, one line each, and files that nothing refers to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from labelstore.care.leftovers import Leftover

Level = Literal["fast", "digests", "deep"]
"""How closely `verify` looks: presence and size; SHA-256 of every file; decoded values as well."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is not as it was written."""

    what: str
    """What was found, and what is due."""
    command: str
    """What to do next."""
    path: str = ""
    """The file, as a path that can be opened; empty where it is about catalogue rows."""
    key: str = ""
    """The file relative to the array folder, where it is one of the arrays'."""
    group: str = ""
    """"crops/PLAN", "labels/NAME" or "masks/NAME", where it is a shard's file."""
    block: int | None = None
    crop_shard: int | None = None
    images: tuple[int, int] | None = None
    """First and last image row of the shard."""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        of = f" of {self.group}" if self.group else ""
        images = "" if self.images is None else f"; images {self.images[0]}-{self.images[1]}{of}"
        shard = "" if self.crop_shard is None else f", crop shard {self.crop_shard}"
        return f"{where}{self.what}{images}{shard}; {self.command}"


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The outcome of one `verify`."""

    store: str
    level: Level
    shards: int
    """Committed shards that were looked at."""
    files: int
    bytes: int
    problems: tuple[Problem, ...] = ()
    leftovers: tuple[Leftover, ...] = field(default=())
    """Files that no catalogue row names: not damage."""
    frozen: bool = False
    seconds: float = 0.0

    @property
    def is_sound(self) -> bool:
        """True where everything that is committed is there and matches."""
        return not self.problems

    @property
    def damaged_shards(self) -> tuple[tuple[str, int, int], ...]:
        """(group, block, crop shard) of every shard with a problem, each once."""
        return tuple(
            dict.fromkeys(
                (problem.group, problem.block, problem.crop_shard)
                for problem in self.problems
                if problem.block is not None and problem.crop_shard is not None
            )
        )

    def to_record(self) -> dict[str, Any]:
        """Everything as JSON values."""
        record = asdict(self)
        record["problems"] = [asdict(found) | {"line": str(found)} for found in self.problems]
        return record | {"sound": self.is_sound}
