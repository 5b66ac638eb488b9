"""What an import found out about its files, in words: whose rows they are, and which were left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def import_facts(facts: Mapping[str, Any]) -> list[str]:
    """Lines about the order of the images and the rows that were left out, of the facts of `labelstore.exchange`."""
    lines = []
    if "order" in facts:
        lines.append(f"order of the images: {facts['order']}, {_reason(facts)}")
    if "teacher_values" in facts:
        values = facts["teacher_values"]
        lines.append(
            f"values of {len(values)} teachers behind each other: {' + '.join(map(str, values))}"
        )
    if "images_of_this_sha256" in facts:
        same, compared = facts["images_of_this_sha256"]
        lines.append(f"{same} of {compared} images have the SHA-256 that the labels name")
    rows, left_out = facts.get("rows"), facts.get("rows_left_out")
    if rows and left_out:
        line = f"left out: {left_out:,} of {rows:,} rows"
        fewest, most = facts.get("crops_of_an_image", (0, 0))
        if fewest != most:
            best = facts["num_crops_that_keeps_most"]
            line += f"; images have {fewest} to {most} crops each, num_crops {best} keeps most rows"
        lines.append(line)
    return lines


def _reason(facts: Mapping[str, Any]) -> str:
    if facts.get("order_is") == "only":
        return "the only one that these files can have"
    proof = facts.get("proof")
    if proof is None:
        return str(facts.get("order_is"))
    return (
        f"{facts.get('order_is')} ({proof['kind']} of {proof['rows']} rows: {proof['found']:.3g} where chance gives "
        f"{proof['expected']:.3g}, z = {proof['z']:.1f}, p = {proof['p']:.1g})"
    )
