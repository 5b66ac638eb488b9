"""What a `zarr.json` may say: nodes, codecs and sizes that this package writes, and nothing else.

Our own reader takes shapes and codecs from the catalogue. Others that open the array folder (xarray, zarr,
tensorstore) believe this file, so a store that names other codecs, or chunks that would not fit into memory,
is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from labelstore.arrays.base import MAX_CHUNK_BYTES

ITEM_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4, "float16": 2, "float32": 4}
CODECS = ("bytes", "transpose", "blosc", "crc32c", "sharding_indexed")
MAX_SIDE = 1 << 40


class Refused(ValueError):
    """What a description says that it must not."""


def description_problem(data: bytes) -> str | None:
    """What one `zarr.json` says that this package never writes, in a few words; None when all is well."""
    try:
        _check_node(json.loads(data), "")
    except Refused as refused:
        return str(refused)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "is not metadata that labelstore writes"
    return None


def _check_node(node: Mapping[str, Any], path: str) -> None:
    if node["zarr_format"] != 3:
        raise Refused(f"{path or 'the root'} is of Zarr version {node['zarr_format']}")
    if node["node_type"] == "array":
        _check_array(node, path)
        return
    if node["node_type"] != "group":
        raise Refused(f"{path or 'the root'} is a {node['node_type']!r}")
    consolidated = node.get("consolidated_metadata") or {"metadata": {}}
    for name, inner in consolidated["metadata"].items():
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in name.split("/")):
            raise Refused(f"array path {name!r}")
        _check_node(inner, f"{path}/{name}".lstrip("/"))


def _check_array(node: Mapping[str, Any], path: str) -> None:
    if node["data_type"] not in ITEM_BYTES:
        raise Refused(f"{path} has data type {node['data_type']!r}")
    if node.get("storage_transformers"):
        raise Refused(f"{path} names storage transformers")
    grid = node["chunk_grid"]
    if grid["name"] != "regular" or node["chunk_key_encoding"]["name"] != "default":
        raise Refused(f"{path} has a grid or keys of another kind")
    shape = _sizes(node["shape"], path, smallest=0)
    outer = _sizes(grid["configuration"]["chunk_shape"], path)
    if len(shape) != len(outer):
        raise Refused(f"{path} has {len(shape)} axes and chunks of {len(outer)}")
    _check_codecs(node["codecs"], outer, ITEM_BYTES[node["data_type"]], path)


def _check_codecs(codecs: Any, chunk: list[int], item_bytes: int, path: str) -> None:  # noqa: ANN401
    """`chunk` is what the codecs see: a shard outside, a chunk inside."""
    names = [codec["name"] for codec in codecs]
    for name in names:
        if name not in CODECS:
            raise Refused(f"{path} names codec {str(name)[:40]!r}, allowed are {', '.join(CODECS)}")
    inside = [codec["configuration"] for codec in codecs if codec["name"] == "sharding_indexed"]
    if not inside and math.prod(chunk) * item_bytes > MAX_CHUNK_BYTES:
        raise Refused(
            f"{path} has chunks of {math.prod(chunk) * item_bytes} bytes, {MAX_CHUNK_BYTES} are allowed"
        )
    for codec in codecs:
        if codec["name"] == "blosc" and codec["configuration"]["cname"] != "zstd":
            raise Refused(f"{path} names blosc with {codec['configuration']['cname']!r}")
    for shard in inside:
        if len(names) > 1:
            raise Refused(f"{path} has codecs around its shards")
        _check_codecs(shard["codecs"], _sizes(shard["chunk_shape"], path), item_bytes, path)
        for name in (codec["name"] for codec in shard["index_codecs"]):
            if name not in ("bytes", "crc32c"):
                raise Refused(f"{path} names codec {str(name)[:40]!r} for its index")


def _sizes(values: Any, path: str, smallest: int = 1) -> list[int]:  # noqa: ANN401
    if not (isinstance(values, list) and 1 <= len(values) <= 8):
        raise Refused(f"{path} has no shape")
    for value in values:
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not smallest <= value <= MAX_SIDE
        ):
            raise Refused(f"{path} has a side of {value!r}"[:200])
    return values
