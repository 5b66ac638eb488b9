"""The metadata files of a Zarr v3 folder: what is written into each `zarr.json`, and what one may say.

Written are every `zarr.json`, consolidated in each group, and the coordinate arrays. Ours and not zarr-python's, whose
arrays and groups are each made through an event loop: with 50 label sets that takes seconds, where the texts are the
same. A test compares them byte for byte.

Our own reader takes shapes and codecs from the catalogue. Others that open the array folder (xarray, zarr,
tensorstore) believe these files, so a store that names other codecs, or chunks that would not fit into memory,
is refused (`description_problem`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from labelstore.arrays import sharding
from labelstore.arrays.array_spec import MAX_CHUNK_BYTES, ArraySpec

COORDINATES = ("image", "crop")
"""Axes that get a coordinate array of row numbers in every group, so that xarray can select by them."""
NODE = "zarr.json"
Json = dict[str, Any]


def metadata_files(
    specs: Sequence[ArraySpec], attributes: Mapping[str, Mapping[str, Any]]
) -> dict[str, bytes]:
    """Key -> bytes of every metadata file that these arrays need; `attributes` are those of groups (the root: "")."""
    arrays = {spec.path: array_node(spec) for spec in specs}
    files: dict[str, bytes] = {}
    for path, size in _coordinates(specs).items():
        arrays[path] = _coordinate_node(path.rpartition("/")[2], size)
        files[f"{path}/c.0"] = sharding.encode_row_numbers(size)
    groups = _groups(specs, attributes)
    texts = {path: _text(node) for path, node in arrays.items()}
    # a group that lies in another one's list has none of its own there
    texts |= {group: _text(_group_node(attributes.get(group, {}))) for group in groups}
    below: dict[str, dict[str, str]] = {group: {} for group in groups}
    for path in sorted(texts.keys() - {""}, key=lambda path: (path.count("/"), path)):
        parts = path.split("/")
        for depth in range(len(parts)):
            below["/".join(parts[:depth])]["/".join(parts[depth:])] = texts[path]
    texts |= {group: _consolidated(texts[group], below[group]) for group in groups}
    files |= {f"{path}/{NODE}".lstrip("/"): text.encode() for path, text in texts.items()}
    return dict(sorted(files.items()))


def array_node(spec: ArraySpec) -> Json:
    """Return the `zarr.json` of one array."""
    inner = _codecs(spec.dtype, spec.level, spec.shuffle)
    if spec.row_axes_first:
        order = list(sharding.axis_order(spec))
        inner.insert(0, {"name": "transpose", "configuration": {"order": order}})
    shards = {
        "chunk_shape": list(spec.chunk),
        "codecs": inner,
        "index_codecs": [_bytes("<u8"), {"name": "crc32c"}],
        "index_location": "end",
    }
    codecs = [{"name": "sharding_indexed", "configuration": shards}]
    return _array(
        spec.dtype, spec.shape, spec.shard, codecs, spec.fill, spec.dimensions, spec.attributes
    )


def _coordinates(specs: Sequence[ArraySpec]) -> dict[str, int]:
    """Path -> length of every coordinate array: an axis of which all arrays of a group have the same length."""
    sizes: dict[str, set[int]] = {}
    for spec in specs:
        for size, name in zip(spec.shape, spec.dimensions, strict=True):
            if name in COORDINATES:
                sizes.setdefault(f"{spec.group}/{name}".lstrip("/"), set()).add(size)
    taken = {spec.path for spec in specs}
    return {
        path: min(found) for path, found in sizes.items() if len(found) == 1 and path not in taken
    }


def _coordinate_node(dimension: str, size: int) -> Json:
    codecs = _codecs("<u4", sharding.ROW_NUMBER_LEVEL, "shuffle")
    return _array("<u4", (size,), (size,), codecs, 0, (dimension,), {})


def _array(
    dtype: str,
    shape: Sequence[int],
    chunk: Sequence[int],
    codecs: Sequence[Json],
    fill: float,
    dimensions: Sequence[str],
    attributes: Mapping[str, Any],
) -> Json:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        fill = float(fill)
    return {
        "shape": list(shape),
        "data_type": kind.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "NaN" if np.isnan(fill) else fill,
        "codecs": list(codecs),
        "attributes": dict(attributes),
        "dimension_names": list(dimensions),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _codecs(dtype: str, level: int, shuffle: str) -> list[Json]:
    blosc = {
        "typesize": np.dtype(dtype).itemsize,
        "cname": "zstd",
        "clevel": level,
        "shuffle": shuffle,
        "blocksize": 0,
    }
    return [_bytes(dtype), {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}]


def _bytes(dtype: str) -> Json:
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _group_node(attributes: Mapping[str, Any]) -> Json:
    below: Json = {}
    return {
        "attributes": dict(attributes),
        "zarr_format": 3,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": below},
        "node_type": "group",
    }


def _text(node: Json) -> str:
    """`json.dumps(node, indent=2)`; all but the attributes is the same for many arrays, and written once."""
    attributes = _deeper(json.dumps(node["attributes"], indent=2), 2)
    frame = _indented(json.dumps({**node, "attributes": None}))
    return frame.replace('"attributes": null', f'"attributes": {attributes}', 1)


@lru_cache(1024)
def _indented(compact: str) -> str:
    # json indents in Python, 20 times slower than it writes one line in C
    return json.dumps(json.loads(compact), indent=2)


def _consolidated(group: str, below: Mapping[str, str]) -> str:
    """The text of a group with those of the nodes below it, by path from it."""
    if not below:
        return group
    before, empty, after = group.rpartition('"metadata": {}')
    nodes = ",".join(
        f"\n{' ' * 6}{json.dumps(path)}: {_deeper(text, 6)}" for path, text in below.items()
    )
    return f"{before}{empty[:-1]}{nodes}\n    }}{after}"


def _deeper(text: str, by: int) -> str:
    # a line break inside a string is written as \n: these are between values
    return text.replace("\n", "\n" + " " * by)


def _groups(specs: Sequence[ArraySpec], attributes: Mapping[str, Any]) -> list[str]:
    """Every group, parents before their children, the root ("") first."""
    groups = {""}
    for group in [*attributes, *(spec.group for spec in specs)]:
        parts = group.split("/")
        groups.update("/".join(parts[: n + 1]) for n in range(len(parts)))
    return sorted(groups)


ITEM_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4, "float16": 2, "float32": 4}
CODECS = ("bytes", "transpose", "blosc", "crc32c", "sharding_indexed")
MAX_SIDE = 1 << 40


class Refused(ValueError):
    """What a description says that it must not."""


def description_problem(data: bytes) -> str | None:
    """Return what one `zarr.json` says that this package never writes, in a few words; None when all is well."""
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
