"""Stores as somebody might make them who wants harm: each case changes a sound store, digests made to match.

A case is a function of (store, outside): `outside` is a folder beside the store with a file `secret` that
nothing may read into a store or change.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import zlib
from contextlib import closing
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from sqlalchemy import create_engine, select

from labelstore.arrays import sharding
from labelstore.catalogue.digests import _written, rows_hash
from labelstore.catalogue.image_blocks import head_checksum, unpack_keys
from labelstore.catalogue.schema import DIGESTED, digests

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def many(name, function, values):
    """A case per value; one that takes long to make is given as a `partial`, called when its case runs."""
    for number, value in enumerate(values):
        CASES[f"{name}-{number}"] = lambda path, outside, value=value: function(
            path, outside, value() if isinstance(value, partial) else value
        )


def compressed(byte: bytes, count: int, end: bytes = b"") -> bytes:
    return zlib.compress(byte * count + end)


def sql(path: Path, *statements) -> None:
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        for statement in statements:
            text, *values = (statement,) if isinstance(statement, str) else statement
            assert connection.execute(text, values).rowcount != 0, statement
        connection.commit()
    reseal(path)


def reseal(path: Path) -> None:
    """Give every table the digest of the rows that it has."""
    engine = create_engine(f"sqlite:///{path / 'catalogue.db'}")
    with engine.begin() as conn:
        conn.execute(digests.delete())
        for table in DIGESTED:
            names = [column.name for column in table.columns]
            scope = table.info.get("scope")
            parts: dict[str, list] = {}
            for row in conn.execute(select(table)):
                parts.setdefault("" if scope is None else row[names.index(scope)], []).append(
                    tuple(row)
                )
            for part, rows in parts.items():
                written = _written(table.name, part, len(rows), rows_hash(rows))
                conn.execute(
                    digests.insert().values(
                        table_name=table.name, scope=part, num_rows=len(rows), digest=written
                    )
                )
    engine.dispose()


def arrays(path: Path) -> Path:
    return next(path / name for name in ("arrays.zarr", "arrays") if (path / name).is_dir())


def shard(path: Path) -> Path:
    """A file of the labels."""
    return min(
        file
        for file in (arrays(path) / "labels").rglob("*")
        if file.is_file() and file.name[0] in "c0123456789"
    )


def set_file(path: Path, key: str, data: bytes) -> None:
    """A metadata file with other bytes, and the catalogue knows."""
    (arrays(path) / key).write_bytes(data)
    sql(
        path,
        (
            "UPDATE metadata_files SET digest = ? WHERE key = ?",
            hashlib.sha256(data).hexdigest(),
            key,
        ),
    )


def change_ledger(path: Path, change) -> None:
    """Every label shard's files as plain JSON, changed, packed again."""
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        query = "SELECT block, crop_shard, files FROM shards WHERE group_name = 'labels/teacher'"
        for block, crop_shard, files in connection.execute(query).fetchall():
            plain = change(json.loads(zlib.decompress(files)))
            packed = (
                plain if isinstance(plain, bytes) else zlib.compress(json.dumps(plain).encode())
            )
            connection.execute(
                "UPDATE shards SET files = ? WHERE group_name = 'labels/teacher' AND block = ? AND crop_shard = ?",
                (packed, block, crop_shard),
            )
        connection.commit()
    reseal(path)


def record_as_it_is(path: Path, file: Path, chunks=None) -> None:
    """The ledger's row of a shard file says what the file holds now."""
    key, data = file.relative_to(arrays(path)).as_posix(), file.read_bytes()

    def change(files):
        for entry in files:
            if entry[0] == key:
                entry[1:3] = len(data), hashlib.sha256(data).hexdigest()
                entry[3] = chunks or entry[3]
        return files

    change_ledger(path, change)


# -- links and devices ------------------------------------------------------------------------------


def _moved(path: Path, outside: Path, name: str) -> None:
    """What has that name lies outside, and a link leads there."""
    target = outside / "moved"
    (path / name).rename(target)
    (path / name).symlink_to(target)


many(
    "link_in_the_place_of",
    lambda path, outside, name: _moved(path, outside, name),
    ["catalogue.db"],
)


@case
def link_for_the_array_folder(path, outside):
    _moved(path, outside, arrays(path).name)


@case
def link_for_the_labels(path, outside):
    _moved(path, outside, f"{arrays(path).name}/labels")


@case
def link_for_a_label_set(path, outside):
    _moved(path, outside, f"{arrays(path).name}/labels/teacher")


@case
def link_for_the_folder_of_a_shard(path, outside):
    _moved(path, outside, shard(path).parent.relative_to(path).as_posix())


@case
def link_for_a_shard(path, outside):
    _moved(path, outside, shard(path).relative_to(path).as_posix())


@case
def link_for_the_metadata(path, outside):
    root = arrays(path)
    name = "zarr.json" if (root / "zarr.json").exists() else "arrays.json"
    _moved(path, outside, f"{root.name}/{name}")


@case
def link_for_the_spool(path, outside):
    (path / "spool").symlink_to(outside)


@case
def link_for_the_manifest(path, outside):
    (path / "labelstore.json").symlink_to(outside / "secret")


@case
def hard_link_to_another_catalogue(path, outside):
    os.link(path / "catalogue.db", outside / "another.db")


@case
def hard_link_for_a_shard(path, outside):
    shard(path).unlink()
    os.link(outside / "secret", shard_place(path))


def shard_place(path: Path) -> Path:
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        query = "SELECT files FROM shards WHERE group_name = 'labels/teacher' LIMIT 1"
        (files,) = connection.execute(query).fetchone()
    key = json.loads(zlib.decompress(files))[0][0]
    place = arrays(path) / key
    place.unlink(missing_ok=True)
    return place


@case
def pipe_for_the_catalogue(path, outside):
    (path / "catalogue.db").unlink()
    os.mkfifo(path / "catalogue.db")


@case
def pipe_for_a_shard(path, outside):
    os.mkfifo(shard_place(path))


@case
def folder_for_the_catalogue(path, outside):
    (path / "catalogue.db").unlink()
    (path / "catalogue.db").mkdir()


@case
def device_for_a_shard(path, outside):
    place = shard_place(path)
    if os.getuid() == 0:
        os.mknod(place, 0o020666, os.makedev(1, 5))  # /dev/zero
    else:
        place.symlink_to("/dev/zero")


@case
def device_for_the_metadata(path, outside):
    root = arrays(path)
    name = "zarr.json" if (root / "zarr.json").exists() else "arrays.json"
    (root / name).unlink()
    if os.getuid() == 0:
        os.mknod(root / name, 0o020666, os.makedev(1, 5))
    else:
        (root / name).symlink_to("/dev/zero")


# -- rows of the catalogue --------------------------------------------------------------------------


def _cell(table, column):
    def change(path, outside, value):
        sql(path, (f"UPDATE {table} SET {column} = ?", value))

    return change


NAMES = [
    "../../outside",
    "/etc",
    "",
    "a\0b",
    "x" * 300,
    "a/b",
    "<script>alert(1)</script>",
    "x'; --",
]
many("label_set_name", _cell("label_sets", "name"), NAMES)
many("plan_name", _cell("plans", "name"), ["../p", "a'b", ""])
many("num_crops", _cell("plans", "num_crops"), [0, -4, 2**40, "four", b"\xff", 5])
many("images_per_shard", _cell("plans", "images_per_shard"), [0, -1, 2**40, 2**19])
many("crops_per_shard", _cell("plans", "crops_per_shard"), [0, 2**40])
many("crops_per_chunk", _cell("plans", "crops_per_chunk"), [0, -2])
many("num_classes", _cell("label_sets", "num_classes"), [0, -1, 2**40, 2])
many("temperature", _cell("label_sets", "temperature"), [0.0, -1.0, float("inf"), "warm"])
many(
    "codec",
    _cell("label_sets", "codec"),
    [
        "{}",
        "[]",
        "[" * 100_000,
        "no json",
        '{"name": "os.system"}',
        '{"name": "ms", "k": 1000000000, "dtype": "float16", "class_ids": "plain"}',
        '{"name": "ms", "k": "3", "dtype": "float16", "class_ids": "plain"}',
        '{"name": "ms", "k": 3, "dtype": "O", "class_ids": "plain"}',
        '{"name": "ms", "k": 3, "dtype": "float16", "class_ids": "../x"}',
    ],
)
many(
    "plan_parameters",
    _cell("plans", "parameters"),
    ["{}", "[]", '{"law": "another", "seed": 0}', '{"seed": -1}', "\x00"],
)


def _image_key(path, outside, key):
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        packed, count = connection.execute("SELECT key, num_rows FROM image_blocks").fetchone()
    keys = [text.encode() for text in unpack_keys(packed, count)]
    keys[3] = key if isinstance(key, bytes) else key.encode()
    sql(path, ("UPDATE image_blocks SET key = ?", zlib.compress(b"\n".join(keys))))


many(
    "image_key",
    _image_key,
    ["../../outside/secret", "/etc/passwd", "a\0b.jpg", "a\\b.jpg", "a//b.jpg", "./a.jpg",
     "x" * 300, "a/../../b.jpg", "\u00e9" * 200, b"\xff\xfe", "a/..", "", "a\nb.jpg"],
)  # fmt: skip
many(
    "image_class",
    _cell("image_blocks", "class_id"),
    [
        "cat",
        2**40,
        b"",
        zlib.compress(b""),
        partial(compressed, b"\0", 1 << 24),
        zlib.compress(b"\x7f" * 4096),
    ],
)
many(
    "image_bad", _cell("image_blocks", "bad"), ["[1]", '{"99999": "x"}', '{"x": 1}', "[" * 100_000]
)
many("image_count", _cell("image_blocks", "num_rows"), [0, 1, 2**40, "x"])


@case
def images_at_a_row_far_out(path, outside):
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        count, there = connection.execute(
            "SELECT num_rows, num_images FROM image_blocks"
        ).fetchone()
    far = 2**30
    sql(
        path,
        f"UPDATE image_blocks SET block = {far}, checksum = {head_checksum(far, count, there)}",
    )


@case
def more_images_than_there_are(path, outside):
    sql(path, "DELETE FROM digests WHERE table_name = 'image_blocks'")
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        (digest,) = connection.execute(
            "SELECT digest FROM digests WHERE table_name = 'image_blocks'"
        ).fetchone()
        fake = _written("image_blocks", "", 10**12, int(digest[:32], 16))
        connection.execute(
            "UPDATE digests SET num_rows = ?, digest = ? WHERE table_name = 'image_blocks'",
            (10**12, fake),
        )
        connection.commit()


@case
def format_of_tomorrow(path, outside):
    sql(path, "UPDATE store SET format_version = 99")


@case
def format_that_is_no_number(path, outside):
    sql(path, "UPDATE store SET format_version = 'one'")


@case
def two_stores_in_one(path, outside):
    sql(path, "INSERT INTO store VALUES ('another', 1, 0.0)")


@case
def a_view_that_never_ends(path, outside):
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        connection.execute("ALTER TABLE image_blocks RENAME TO pictures")
        connection.execute(
            "CREATE VIEW image_blocks AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) "
            "SELECT i AS block, num_rows, num_images, checksum, key_crc, key, class_id, size, mtime_ns, width, height, "
            "digest, bad FROM n, pictures"
        )
        connection.commit()


@case
def a_trigger(path, outside):
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        connection.execute("CREATE TRIGGER t AFTER INSERT ON leases BEGIN DELETE FROM shards; END")
        connection.commit()


@case
def a_cell_of_a_hundred_megabytes(path, outside):
    sql(path, "UPDATE label_sets SET facts = '\"' || hex(zeroblob(50000000)) || '\"'")


many(
    "ledger_key",
    lambda path, outside, key: change_ledger(
        path, lambda files: [[key, *rest] for _, *rest in files]
    ),
    ["../../outside/secret", "/etc/passwd", "labels/../../../outside/secret", "", "a\0", 7, "a\\b"],
)
many(
    "ledger_size",
    lambda path, outside, size: change_ledger(
        path, lambda files: [[key, size, *rest] for key, _, *rest in files]
    ),
    [-1, 2**62, "many", None],
)
many(
    "ledger_files",
    lambda path, outside, packed: change_ledger(path, lambda files: packed),
    [
        b"",
        b"no zlib",
        zlib.compress(b"{}"),
        zlib.compress(b"[]"),
        zlib.compress(b"[1, 2]"),
        zlib.compress(b"[" * 200_000),
        partial(compressed, b" ", 200_000_000, b"[]"),
        zlib.compress(b'[["labels/teacher/c", 1, "0", {"labels/teacher/c": ["x"]}]]'),
    ],
)
many(
    "ledger_chunks",
    lambda path, outside, crcs: change_ledger(
        path,
        lambda files: [
            [key, size, sha, dict.fromkeys(chunks, crcs)] for key, size, sha, chunks in files
        ],
    ),
    [[], [0] * 100_000],
)
many(
    "ledger_place",
    lambda path, outside, statement: sql(path, statement),
    [
        "UPDATE shards SET block = 1000000000 WHERE group_name = 'labels/teacher' AND block = 0",
        "UPDATE shards SET crop_shard = -1 WHERE group_name = 'labels/teacher' AND crop_shard = 0",
        "UPDATE shards SET group_name = 'labels/../../outside' WHERE group_name = 'labels/teacher'",
    ],
)
many(
    "metadata_key",
    lambda path, outside, key: sql(
        path, ("INSERT INTO metadata_files VALUES (?, ?)", key, "0" * 64)
    ),
    ["../../outside/secret", "/etc/passwd", "a\\b"],
)
many(
    "catalogue_bytes",
    lambda path, outside, data: (path / "catalogue.db").write_bytes(data),
    [b"", b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 8000, b"\0" * 100_000],
)
many(
    "catalogue_url",
    lambda path, outside, data: (path / "catalogue.url").write_bytes(data),
    [
        b"",
        b"\xff\xfe",
        b"x" * 10_000_000,
        b"sqlite:////etc/passwd",
        b"postgresql://user:secret@127.0.0.1:1/d",
        b"postgresql://127.0.0.1:1/d?password=secret",
        b"postgresql://127.0.0.1:1/d?passfile=/etc/passwd",
        b"postgresql://127.0.0.1:1/d?service=x",
    ],
)


many(
    "write_ahead_log",
    lambda path, outside, name: (path / name).symlink_to(outside / "secret"),
    ["catalogue.db-wal", "catalogue.db-shm"],
)


@case
def spool_elsewhere(path, outside):
    (path / "spool").mkdir(exist_ok=True)
    (path / "spool" / "teacher").symlink_to(outside)


@case
def journal_with_a_further_name(path, outside):
    magic = bytes.fromhex("d9d505f920a163d7")
    (path / "catalogue.db-journal").write_bytes(magic + bytes(504) + magic)


@case
def catalogue_lost(path, outside):
    (path / "catalogue.db").unlink()


# -- descriptions of the arrays ----------------------------------------------------------------------


def _described(path, change) -> None:
    """Change the array nodes of the root's description, consolidated ones included."""
    if not (arrays(path) / "zarr.json").exists():
        record = json.loads((arrays(path) / "arrays.json").read_text())
        change_hdf5 = {"shape": [10**30, 4], "chunk": [-1, 1]}
        next(iter(record["arrays"].values())).update(change_hdf5)
        set_file(path, "arrays.json", json.dumps(record).encode())
        return
    record = json.loads((arrays(path) / "zarr.json").read_text())
    for node in record["consolidated_metadata"]["metadata"].values():
        if node["node_type"] == "array" and node["codecs"][0]["name"] == "sharding_indexed":
            change(node)
    set_file(path, "zarr.json", json.dumps(record).encode())


def _inner(node):
    return node["codecs"][0]["configuration"]


DESCRIPTIONS = [
    lambda node: _inner(node)["codecs"].append({"name": "numcodecs.pickle", "configuration": {}}),
    lambda node: node["codecs"].append({"name": "os.system"}),
    lambda node: _inner(node)["codecs"].append({"name": "gzip", "configuration": {"level": 9}}),
    lambda node: _inner(node).update(index_codecs=[{"name": "zstd", "configuration": {}}]),
    lambda node: _inner(node).update(chunk_shape=[2**20, 2**20]),
    lambda node: node["chunk_grid"].update(name="rectangular"),
    lambda node: node["chunk_grid"]["configuration"].update(chunk_shape=[-1, 4]),
    lambda node: node.update(shape=[2**80, 4]),
    lambda node: node.update(data_type="object"),
    lambda node: node.update(storage_transformers=[{"name": "elsewhere"}]),
    lambda node: node.update(zarr_format=2),
    lambda node: node.update(codecs=[]) or node.update(data_type=["x"]),
]
many("description", lambda path, outside, change: _described(path, change), DESCRIPTIONS)


def _root_description(path, outside, data) -> None:
    set_file(path, "zarr.json" if (arrays(path) / "zarr.json").exists() else "arrays.json", data)


many(
    "description_bytes",
    _root_description,
    [b"", b"{}", b"[" * 100_000, b'{"zarr_format": 3, "node_type": "pickle"}', b"\xff\xfe"],
)


# -- manifests --------------------------------------------------------------------------------------


def _manifest(path, outside, data) -> None:
    (path / "labelstore.json").write_bytes(data)


def _manifest_naming(key: str, size: object = 6) -> bytes:
    files = {key: {"bytes": size, "sha256": hashlib.sha256(b"secret").hexdigest()}}
    root = hashlib.sha256(f"{files[key]['sha256']}  {key}\n".encode()).hexdigest()
    record = {
        "format": "labelstore",
        "format_version": 1,
        "uuid": "u",
        "root": root,
        "files": files,
    }
    return (json.dumps(record, indent=1) + "\n").encode()


many(
    "manifest",
    _manifest,
    [
        b"", b"{}", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"format_version": 99}',
        _manifest_naming("../outside/secret"), _manifest_naming("/etc/passwd"),
        _manifest_naming("catalogue.db", -1), _manifest_naming("catalogue.db", "six"),
        _manifest_naming("a\\..\\b"),
    ],
)  # fmt: skip


# -- chunks -----------------------------------------------------------------------------------------


@case
def a_chunk_that_decodes_to_half_a_gigabyte(path, outside):
    """A frame of a few kilobytes, its checksums right, that names another size than its array has."""
    file = shard(path)
    if (arrays(path) / "zarr.json").exists():
        from numcodecs import blosc

        frame = blosc.compress(np.zeros(1 << 29, np.uint8), b"zstd", 5, blosc.NOSHUFFLE, 0, 1)
        chunk = frame + sharding.crc32c(frame).to_bytes(4, "little")
    else:
        from numcodecs.fletcher32 import Fletcher32

        chunk = bytes(Fletcher32().encode(zlib.compress(bytes(1 << 29), 9)))
    with closing(sqlite3.connect(path / "catalogue.db")) as connection:
        rows = connection.execute("SELECT files FROM shards WHERE group_name LIKE 'labels/%'")
        entries = [entry for (files,) in rows for entry in json.loads(zlib.decompress(files))]
    key = file.relative_to(arrays(path)).as_posix()
    (chunks,) = (entry[3] for entry in entries if entry[0] == key)
    total = sum(map(len, chunks.values()))
    stored, index = sharding.pack_chunks([chunk] + [None] * (total - 1))
    file.write_bytes(b"".join(stored) + index)
    first = min(chunks)
    crc = (
        int.from_bytes(chunk[-4:], "little")
        if "zarr" in arrays(path).name
        else sharding.crc32c(chunk)
    )
    made = {name: [None] * len(crcs) for name, crcs in chunks.items()}
    made[first][0] = crc
    record_as_it_is(path, file, made)


def _hdf5(path, outside, make) -> None:
    """A shard file that HDF5 programs would follow out of the store; its index and checksums are right."""
    if (arrays(path) / "zarr.json").exists():
        # in a Zarr store there is no HDF5: the bytes stand in a shard's place
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as made:
            make(made, outside)
        shard(path).write_bytes(buffer.getvalue())
        record_as_it_is(path, shard(path))
        return
    file = shard(path)
    good = file.read_bytes()
    total = _num_chunks(path, file)
    index = good[-sharding.index_bytes(total) :]
    body = io.BytesIO(good[: -len(index)])
    with h5py.File(body, "r+") as held:
        make(held, outside)
    # chunks stay where they were: HDF5 appends
    file.write_bytes(body.getvalue() + index)
    record_as_it_is(path, file)


def _num_chunks(path: Path, file: Path) -> int:
    key = file.relative_to(arrays(path)).as_posix()
    found = 0

    def look(files):
        nonlocal found
        for entry in files:
            if entry[0] == key:
                found = sum(map(len, entry[3].values()))
        return files

    change_ledger(path, look)
    return found


def _virtual(file, outside) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="u1")
    layout[:] = h5py.VirtualSource(str(outside / "secret"), "x", shape=(4,))
    file.create_virtual_dataset("more", layout)


HDF5 = [
    lambda file, outside: file.__setitem__(
        "more", h5py.ExternalLink(str(outside / "secret"), "/x")
    ),
    lambda file, outside: file.__setitem__("more", h5py.SoftLink("/nowhere")),
    lambda file, outside: file.create_dataset(
        "more", (6,), "u1", external=[(str(outside / "secret"), 0, 6)]
    ),
    _virtual,
    lambda file, outside: file.create_group("more"),
]
many("hdf5", _hdf5, HDF5)
