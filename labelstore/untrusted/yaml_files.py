"""YAML files that somebody else may have made: a mapping of plain values, of bounded size, nothing named twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from labelstore.errors import RejectedInput

MAX_BYTES = 4_000_000
"""The settings of a run with a hundred thousand class names have less."""
DEEPEST = 50


def read_mapping(path: Path) -> Mapping[Any, Any]:
    """The mapping in a YAML file; RejectedInput for one that cannot be read, is too large or has aliases.

    (A few aliases of aliases stand for billions of values; `trainer run` writes none.)
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise RejectedInput(f"{path} has more than {MAX_BYTES:,} bytes: settings have less")
        # a number of thousands of digits or an impossible date is a ValueError
        values = yaml.load(data.decode("utf-8"), _WithoutAliases)
    except _AliasError:
        raise RejectedInput(f"{path} has YAML aliases: write the values out") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RejectedInput(
            f"{path} cannot be read as a run's config ({reason}): give a config.yaml"
        ) from error
    if not isinstance(values, Mapping):
        raise RejectedInput(
            f"{path} is no mapping of settings: give a run's config.yaml, or lines like `epochs: 100`"
        )
    return values


class _AliasError(yaml.YAMLError):
    pass


class _WithoutAliases(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 - as in PyYAML
        if self.check_event(yaml.AliasEvent):
            raise _AliasError
        if self.depth == DEEPEST:
            raise yaml.YAMLError(f"lists or mappings in more than {DEEPEST} others")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - as in PyYAML
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        # PyYAML silently takes the last one
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.most_common(1):
            if count > 1:
                raise yaml.YAMLError(f"{name[:80]} is there {count} times")
        return node
