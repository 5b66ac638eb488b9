"""Which label set the codes of a mask were computed from: the ledger says it of every shard, by uuid.

A mask knows its label set by name, and a name can be given again. Where shards were committed before that was
recorded, nothing is known and nothing is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from labelstore.catalogue.records import DERIVED, LabelSetRow, MaskRow
from labelstore.errors import ConflictError

if TYPE_CHECKING:
    from labelstore.store.store import Store

_ORIGIN = re.compile(rf"{DERIVED}([0-9a-f]{{32}})")


def origin_mark(label_set: LabelSetRow) -> str:
    """The ledger's device column for masks."""
    return f"{DERIVED}{label_set.uuid}"


def origins(device: str) -> list[str]:
    """The uuids in a shard's mark; several where `labelstore merge` put its rows together from several stores."""
    return _ORIGIN.findall(device)


def refuse_dropped_origin(store: Store, mask: MaskRow) -> None:
    """ConflictError where some of a mask's codes are of a label set that the store does not have any more."""
    there = {row.uuid for row in store.catalogue.label_sets.all()}
    marks = {device for _, device in store.catalogue.ledger.labelling(f"masks/{mask.name}")}
    if any(uuid not in there for device in marks for uuid in origins(device)):
        raise ConflictError(
            f"mask {mask.name} of {store.path} was made from a label set that was dropped, not from the "
            f"{mask.label_set} that is there now: `labelstore drop mask {mask.name} {store.path}` first, or "
            "choose another `name`"
        )
