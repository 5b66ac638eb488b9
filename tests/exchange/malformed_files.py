"""Label files that want to run code, take memory, hang or lie: each is a function that writes one into a folder.

Every `fkd` one stands in the place of a valid file of the only image of `images` (class a, 60 x 80 pixels).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

M, K, C = 4, 3, 10
HEIGHT, WIDTH = 60, 80
CANARY = "was-run"
"""A file of this name appears where code of a file was run."""

GOOD_BOX = np.array([[0, 0, 30, 40], [10, 20, 50, 60], [0, 0, 60, 80], [59, 79, 1, 1]])
SHARES = (GOOD_BOX / np.array([HEIGHT, WIDTH] * 2)).astype("f4")
FLIPS = np.array([True, False, True, False])
LABELS = np.stack([np.tile([3, 1, 7], (M, 1)), np.tile([0.5, 0.25, 0.125], (M, 1))], 1).astype("f4")


def torch_bytes(value, **options) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def good() -> bytes:
    return torch_bytes([SHARES, FLIPS, LABELS])


def zipped(
    pickle_bytes: bytes, *, storages=(), method=zipfile.ZIP_STORED, name="archive/data.pkl"
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr(name, pickle_bytes)
        for key, data in storages:
            file.writestr(f"archive/data/{key}", data)
    return out.getvalue()


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def harmful(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that name code; run, they would leave the canary."""
    canary = str(folder / CANARY)
    touch = f"open({canary!r}, 'w').close()"
    for name, call in {
        "os-system": Runs(os.system, f"touch {canary}"),
        "eval": Runs(eval, touch),
        "exec": Runs(exec, touch),
        "open": Runs(open, canary, "w"),
        "getattr": Runs(getattr, "text", "upper"),
        "import": Runs(__import__, "antigravity"),
        "torch-load": Runs(torch.load, canary),
        "numpy-load": Runs(np.load, canary, None, True),
        "frombuffer": Runs(np.frombuffer, b"12345678"),
        "path": Path(canary),
        "slice": slice(1, 2),
        "complex": 1j,
    }.items():
        for protocol in (2, 4):
            data = pickle.dumps([call, FLIPS, LABELS], protocol)
            yield f"{name}-{protocol}", zipped(data)
    yield "plain-pickle", pickle.dumps([Runs(os.system, f"touch {canary}")], 2)
    yield (
        "legacy",
        torch_bytes([SHARES], _use_new_zipfile_serialization=False).replace(
            b"numpy._core.multiarray\n_reconstruct\n", b"posix\nsystem\n"
        ),
    )
    yield (
        "builtin-eval",
        zipped(
            b"\x80\x02cbuiltins\neval\n"
            + b"X"
            + struct.pack("<I", len(touch))
            + touch.encode()
            + b"\x85R."
        ),
    )
    yield "inst", zipped(b"\x80\x02(X\x02\x00\x00\x00ls" + b"ios\nsystem\n.")
    yield "obj", zipped(b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00lso.")
    yield "newobj", zipped(b"\x80\x02cos\nsystem\n)\x81.")
    yield "newobj-ex", zipped(b"\x80\x04cos\nsystem\n)}\x92.")
    yield "ext", zipped(b"\x80\x02\x82\x01.")
    yield "stack-global", zipped(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.")
    yield "stack-global-list", zipped(b"\x80\x04]\x8c\x06system\x93.")
    yield "names-a-newline", zipped(b"\x80\x02cnumpy\nndarray\x1b[31m\n.")
    yield "reduces-an-argument", zipped(b"\x80\x02cnumpy\nndarray\n)R.")
    yield "calls-a-list", zipped(b"\x80\x02])R.")
    yield "builds-a-list", zipped(b"\x80\x02]}b.")
    yield "builds-a-dict", zipped(b"\x80\x02}}b.")
    yield "persistent-text", zipped(b"\x80\x02X\x04\x00\x00\x00evilQ.")
    yield "persistent-module", zipped(b"\x80\x02(X\x06\x00\x00\x00moduleNNNNtQ.")
    yield "object-array", torch_bytes([SHARES, FLIPS, np.array([Runs(os.system, "true")], object)])
    yield "void-array", torch_bytes([SHARES, FLIPS, np.zeros(3, "V8")])
    yield "record-array", torch_bytes([SHARES, FLIPS, np.zeros(3, [("a", "f4")])])
    yield "text-array", torch_bytes([SHARES, FLIPS, np.array(["a"])])
    yield "date-array", torch_bytes([SHARES, FLIPS, np.zeros(3, "M8[s]")])
    yield "big-endian", torch_bytes([SHARES.astype(">f4"), FLIPS, LABELS])
    yield "complex-tensor", torch_bytes(torch.zeros(3, dtype=torch.complex64))
    yield "sparse-tensor", torch_bytes([torch.eye(3).to_sparse(), FLIPS, LABELS])
    yield "module", torch_bytes(torch.nn.Linear(2, 2))


def greedy() -> Iterator[tuple[str, bytes]]:
    """Files that declare or build more than they hold."""
    huge = struct.pack("<Q", 1 << 60)
    yield "bytes-length", zipped(b"\x80\x04\x8e" + huge + b"abc.")
    yield "text-length", zipped(b"\x80\x04\x8d" + huge + b"abc.")
    yield "bytearray-length", zipped(b"\x80\x05\x96" + huge + b"abc.")
    yield "frame-length", zipped(b"\x80\x04\x95" + huge + b"N.")
    yield "int-length", zipped(b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.")
    yield "memo-index", zipped(b"\x80\x02Nr\xff\xff\xff\xff.")
    yield "memo-missing", zipped(b"\x80\x02h\x07.")
    yield "deep-lists", zipped(b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".")
    yield "deep-tuples", zipped(b"\x80\x02)" + b"\x85" * 900_000 + b".")
    yield "deep-marks", zipped(b"\x80\x02" + b"(" * 900_000 + b".")
    yield "endless-operations", zipped(b"\x80\x02]" + b"N0" * 3_000_000 + b".")
    yield "many-lists", zipped(b"\x80\x02(" + b"]" * 3_000_000 + b"t.")
    text = b"X" + struct.pack("<I", 4_000_000) + b"a" * 4_000_000
    encode = b"c_codecs\nencode\n"
    latin = b"X\x06\x00\x00\x00latin1"
    copies = (b"h\x00h\x01\x86" + b"h\x02h\x03\x86R").replace(b"h\x00h\x01\x86", b"")
    yield (
        "copies-of-a-text",
        zipped(
            b"\x80\x02"
            + text
            + b"q\x00"
            + latin
            + b"q\x01"
            + encode
            + b"q\x02("
            + b"h\x02h\x00h\x01\x86R" * 2000
            + b"t."
        ),
    )
    del copies
    yield (
        "wide-letters",
        zipped(
            b"\x80\x02("
            + (
                b"X"
                + struct.pack("<I", 4_000_004)
                + "\N{GRINNING FACE}".encode()
                + b"a" * 4_000_000
            )
            * 12
            + b"t."
        ),
    )
    yield (
        "colliding-keys",
        zipped(
            b"\x80\x02}("
            + b"".join(
                b"\x8a\x0a" + ((2**61 - 1) * n).to_bytes(10, "little", signed=True) + b"N"
                for n in range(20_000)
            )
            + b"u."
        ),
    )
    yield (
        "big-dict",
        zipped(
            b"\x80\x02}("
            + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(40_000))
            + b"u."
        ),
    )
    array = pickle.dumps(np.zeros(3, "f4"), 2)
    yield "array-shape", zipped(array.replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"))
    yield "array-shape-negative", zipped(array.replace(b"K\x03\x85", b"J\xff\xff\xff\xff\x85"))
    yield (
        "array-shape-wraps",
        zipped(array.replace(b"K\x03\x85", b"\x8a\x09\x03\x00\x00\x00\x00\x00\x00\x00\x01\x85")),
    )

    def tensor(numel: int, size: bytes, stride: bytes, data=b"\0" * 16, offset=b"K\x00") -> bytes:
        pid = (
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        )
        pid += b"J" + struct.pack("<i", numel) + b"tQ"
        body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + pid + offset + size + stride
        body += b"\x89ccollections\nOrderedDict\n)RtR."
        return zipped(body, storages=[("0", data)])

    yield "storage-larger", tensor(2**30, b"K\x04\x85", b"K\x01\x85")
    yield "storage-negative", tensor(-1, b"K\x04\x85", b"K\x01\x85")
    yield "tensor-larger", tensor(4, b"J\xff\xff\xff\x7f\x85", b"K\x01\x85")
    yield "tensor-expanded", tensor(4, b"M\xff\xffM\xff\xff\x86", b"K\x00K\x00\x86")
    yield "tensor-stride", tensor(4, b"K\x02\x85", b"K\xff\x85")
    yield "tensor-stride-negative", tensor(4, b"K\x02\x85", b"J\xff\xff\xff\xff\x85")
    yield "tensor-offset", tensor(4, b"K\x04\x85", b"K\x01\x85", offset=b"K\x03")
    yield (
        "tensor-without-storage",
        tensor(4, b"K\x04\x85", b"K\x01\x85").replace(b"archive/data/0", b"archive/data/1"),
    )
    yield "storage-shorter", tensor(4, b"K\x04\x85", b"K\x01\x85", data=b"\0" * 12)


def damaged() -> Iterator[tuple[str, bytes]]:
    """Files of the right kind that are broken."""
    data = good()
    yield "empty", b""
    yield "zeros", bytes(1000)
    yield "text", b"not a label file\n" * 50
    yield "html", b"<!DOCTYPE html><html>404</html>"
    yield "half", data[: len(data) // 2]
    yield "without-end", data[:-30]
    yield "bytes-behind", data + b"\0" * 10
    yield "deflated", zipped(pickle.dumps([SHARES, FLIPS, LABELS], 2), method=zipfile.ZIP_DEFLATED)
    bomb = zipped(bytes(32 << 20), method=zipfile.ZIP_DEFLATED)
    yield "zip-bomb", bomb
    yield "no-pickle", zipped(b"x", name="archive/other")
    yield "tar", b"\0" * 257 + b"ustar" + b"\0" * 300
    at = data.index(b"PK\x01\x02")
    yield "directory-crc", data[: at + 16] + bytes([data[at + 16] ^ 1]) + data[at + 17 :]
    yield "encrypted", data[: at + 8] + b"\x01" + data[at + 9 :]
    yield "directory-offset", data[:-6] + struct.pack("<I", 2**31) + data[-2:]
    yield "directory-count", data[:-14] + struct.pack("<HH", 60_000, 60_000) + data[-10:]
    inside = data.index(b"latin1") - 20
    yield "flipped-bit", data[:inside] + bytes([data[inside] ^ 4]) + data[inside + 1 :]
    two = io.BytesIO()
    with zipfile.ZipFile(two, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02N.")
        file.writestr("b/data.pkl", b"\x80\x02N.")
    yield "two-pickles", two.getvalue()
    big = zipped(pickle.dumps([SHARES, FLIPS, LABELS], 2))
    out = io.BytesIO(big)
    with zipfile.ZipFile(out, "a") as file:
        file.writestr("archive/byteorder", b"big")
    yield "byteorder-big", out.getvalue()
    legacy = torch_bytes(
        [torch.tensor(SHARES), torch.tensor(FLIPS), torch.tensor(LABELS)],
        _use_new_zipfile_serialization=False,
    )
    yield "legacy-half", legacy[:-20]
    yield "legacy-behind", legacy + b"\0"
    yield "legacy-numel", legacy.replace(struct.pack("<q", M), struct.pack("<q", 2**40))
    yield "unicode-error", zipped(b"\x80\x02X\x02\x00\x00\x00\xff\xfe.")
    yield "no-stop", zipped(b"\x80\x02N")
    yield "underflow", zipped(b"\x80\x02a.")
    yield "protocol-0", zipped(pickle.dumps([1, 2, 3], 0))
    yield "protocol-9", zipped(b"\x80\x09N.")


def wrong() -> Iterator[tuple[str, bytes]]:
    """Sound files with contents that are no labels of this image."""

    def of(shares=SHARES, flips=FLIPS, labels=LABELS):
        return torch_bytes([shares, flips, labels])

    def labels(rank: int, column: int, value: float, kind="f4"):
        changed = LABELS.astype(kind)
        changed[1, rank, column] = value
        return of(labels=changed)

    yield "number", torch_bytes(7)
    yield "dictionary", torch_bytes({"a": 1})
    yield "two-entries", torch_bytes([SHARES, FLIPS])
    yield "lists", torch_bytes([SHARES.tolist(), FLIPS.tolist(), LABELS.tolist()])
    yield "none", torch_bytes([None, None, None])
    yield "box-nan", of(shares=np.where(np.arange(4) == 2, np.nan, SHARES).astype("f4"))
    yield "box-infinite", of(shares=np.where(np.arange(4) == 2, np.inf, SHARES).astype("f4"))
    yield "box-negative", of(shares=-SHARES)
    yield "box-beyond", of(shares=SHARES * 2)
    yield "box-empty", of(shares=SHARES * np.array([1, 1, 0, 1], "f4"))
    yield "box-between-pixels", of(shares=SHARES * np.float32(0.991))
    yield "box-integers", of(shares=GOOD_BOX)
    yield "box-flat", of(shares=SHARES.ravel())
    yield "flip-two", of(flips=np.array([0, 1, 2, 0], "i8"))
    yield "flip-short", of(flips=FLIPS[:2])
    yield "class-minus", labels(0, 0, -1)
    yield "class-beyond", labels(0, 0, C)
    yield "class-half", labels(0, 0, 1.5)
    yield "class-nan", labels(0, 0, np.nan)
    yield "class-huge", labels(0, 0, 3e38)
    yield "class-twice", labels(0, 0, 1)
    yield "prob-nan", labels(1, 1, np.nan)
    yield "prob-negative", labels(1, 2, -0.1)
    yield "prob-above-one", labels(1, 0, 1.2)
    yield "prob-sum", labels(1, 0, 0.9)
    yield "prob-zero", of(labels=LABELS * np.array([1, 0], "f4")[:, None])
    yield "no-crops", of(SHARES[:0], FLIPS[:0], LABELS[:0])
    yield "label-shape", of(labels=LABELS.swapaxes(1, 2).copy())
    yield "label-more-than-boxes", of(labels=np.concatenate([LABELS, LABELS]))
    yield "label-integers", of(labels=LABELS.astype("i8"))
    yield "logits", of(labels=LABELS * 20)


FkdCase = tuple[str, Callable[[], bytes]]


def fkd_cases(folder: Path) -> list[tuple[str, bytes]]:
    """Every malformed FKD file, by a name of its own."""
    groups = {
        "harmful": harmful(folder),
        "greedy": greedy(),
        "damaged": damaged(),
        "wrong": wrong(),
    }
    return [(f"{group}-{name}", data) for group, cases in groups.items() for name, data in cases]


def mutated(data: bytes, number: int) -> bytes:
    """One of many small damages: bytes changed, cut out, doubled; the zip's CRC made right again for half of them."""
    rng = np.random.default_rng([7, number])
    broken = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(max(len(broken), 1)))
        what = rng.integers(4)
        if what == 0 and broken:
            broken[at] ^= 1 << int(rng.integers(8))
        elif what == 1:
            broken[at : at + 4] = rng.bytes(4)
        elif what == 2:
            del broken[at : at + int(rng.integers(1, 20))]
        else:
            broken[at:at] = broken[at : at + int(rng.integers(1, 20))]
    return bytes(broken)


def mutated_pickle(data: bytes, number: int) -> bytes:
    """The same damages inside the pickle of a torch zip, in a sound zip: they reach the reader of pickles."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in contents if name.endswith("data.pkl"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for entry, content in contents.items():
            file.writestr(entry, mutated(content, number) if entry == name else content)
    return out.getvalue()


def npz_cases(folder: Path) -> Iterator[tuple[str, bytes]]:
    def archive(**arrays) -> bytes:
        out = io.BytesIO()
        np.savez(out, **arrays)
        return out.getvalue()

    def raw(name: str, content: bytes, method=zipfile.ZIP_STORED) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as file:
            file.writestr(name, content)
        return out.getvalue()

    def npy(header: str, body=b"") -> bytes:
        text = header.encode() + b"\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body

    canary = str(folder / CANARY)
    yield "object", archive(key=np.array(["a/x.png"], object), prob=np.ones((1, 1, 2)))
    pickled = np.empty(1, object)
    pickled[0] = Runs(os.system, f"touch {canary}")
    out = io.BytesIO()
    np.save(out, pickled, allow_pickle=True)
    yield "pickled", raw("key.npy", out.getvalue())
    yield "header-code", raw("prob.npy", npy(f"open({canary!r}, 'w')"))
    yield "header-deep", raw("prob.npy", npy("(" * 4000))
    yield (
        "header-huge-shape",
        raw(
            "prob.npy",
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000, 9)}"),
        ),
    )
    yield (
        "header-bad-dtype",
        raw("prob.npy", npy("{'descr': 'no', 'fortran_order': False, 'shape': (1,)}")),
    )
    yield "bomb", raw("prob.npy", bytes(32 << 20), zipfile.ZIP_DEFLATED)
    yield "unknown-name", archive(key=np.array(["a"]), evil=np.zeros(3))
    yield "lengths", archive(key=np.array(["a", "b"]), prob=np.ones((1, 1, 2)))
    yield "not-a-zip", b"\x93NUMPY"
    text = np.array(["a/im.png"])
    surrogate = archive(key=text, prob=np.ones((1, 1, 2)))
    yield "bad-text", surrogate.replace(b"a\0\0\0/\0\0\0", b"\xff\xff\xff\xff/\0\0\0")
    crc = surrogate.replace(b"a\0\0\0/\0\0\0", b"\xff\xff\xff\xff/\0\0\0")
    body = crc[crc.index(b"\x93NUMPY") :]
    assert zlib.crc32(body[:10]) != 0


def json_bomb() -> str:
    return json.dumps({"0": [1]})[:-2] + "[" * 100_000
