"""What a foreign pickle may hold: numbers, texts, lists, tuples, dictionaries, NumPy arrays and torch tensors.

Each name that a file may use stands for a function here (`GLOBALS`) that checks its arguments and builds an inert
value; nothing of NumPy's or torch's own machinery is called with them. What is declared is compared with what is there:
lengths, shapes and strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labelstore.untrusted.refusal import Refused, shown

Value: TypeAlias = Any
"""Something that a file holds: of no type until it was looked at."""
Spend: TypeAlias = Callable[[int], None]
"""Counts bytes that are made out of a file's; raises Refused where they are more than a file can need."""

MAX_AXES = 8
MAX_NAME_BYTES = 200

_DTYPES = {
    code: np.dtype(f"<{code}") for code in ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")
}
_DTYPES |= {"i1": np.dtype("i1"), "u1": np.dtype("u1"), "b1": np.dtype("?")}


class Dtype:
    """A NumPy dtype by its code, as pickles write it: first the code, then its state."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        self.dtype = _DTYPES[code]


class InertArray:
    """A NumPy array or torch tensor of a file; `array()` gives it."""

    __slots__ = ("_array", "_view")

    def __init__(self, array: NDArray[Any] | None = None) -> None:
        self._array = array
        self._view: Callable[[], NDArray[Any]] | None = None

    @classmethod
    def later(cls, view: Callable[[], NDArray[Any]]) -> InertArray:
        """An array whose bytes come behind the pickle."""
        made = cls()
        made._view = view
        return made

    def set(self, array: NDArray[Any]) -> None:
        """Give it its content, once."""
        if self._array is not None or self._view is not None:
            raise Refused("gives an array two contents")
        self._array = array

    def array(self) -> NDArray[Any]:
        """The array, read-only; Refused where the file never gave it a content."""
        if self._array is None:
            if self._view is None:
                raise Refused("has an array without content")
            self._array = self._view()
        return self._array


@dataclass(slots=True)
class Storage:
    """The numbers behind torch tensors: `data` is filled in when the file's bytes are found."""

    dtype: str
    """NumPy code, or "bf16"."""
    numel: int
    data: memoryview | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that the numbers take."""
        return self.numel * (2 if self.dtype == "bf16" else _DTYPES[self.dtype].itemsize)


@dataclass(frozen=True, slots=True)
class Global:
    """A name of the allow-list: `call` builds what REDUCE asks for; None: the name is only ever an argument."""

    name: str
    call: Callable[[tuple[Value, ...], Spend], Value] | None = None
    storage: str | None = None


def _reconstruct(args: tuple[Value, ...], spend: Spend) -> InertArray:
    if not (len(args) == 3 and args[0] is _NDARRAY and is_shape(args[1]) and args[1] in ((0,), ())):
        raise Refused("rebuilds an array from something else than an array")
    if not (isinstance(args[2], (bytes, str)) and args[2] in (b"b", "b")):
        raise Refused("rebuilds an array of another kind than numbers")
    return InertArray()


def _dtype(args: tuple[Value, ...], spend: Spend) -> Dtype:
    code = args[0] if args else None
    if isinstance(code, bytes):
        code = code.decode("ascii", "replace")
    if not isinstance(code, str) or code not in _DTYPES or not 1 <= len(args) <= 3:
        raise Refused(
            f"has numbers of dtype {shown(code, 20)!r}; floats, integers and bool are read"
        )
    return Dtype(code)


def _scalar(args: tuple[Value, ...], spend: Spend) -> int | float | bool:
    if not (len(args) == 2 and isinstance(args[0], Dtype) and isinstance(args[1], bytes)):
        raise Refused("has a NumPy number that is none")
    if len(args[1]) != args[0].dtype.itemsize:
        raise Refused("has a NumPy number of the wrong length")
    value: int | float | bool = np.frombuffer(args[1], args[0].dtype)[0].item()
    return value


def _from_buffer(args: tuple[Value, ...], spend: Spend) -> InertArray:
    if not (
        len(args) == 4 and isinstance(args[0], (bytes, bytearray)) and isinstance(args[1], Dtype)
    ):
        raise Refused("rebuilds an array from something else than bytes")
    if not (isinstance(args[3], str) and args[3] in ("C", "F")):
        raise Refused("has an array of unknown order")
    return InertArray(_shaped(args[0], args[1].dtype, args[2], fortran=args[3] == "F"))


def _encode(args: tuple[Value, ...], spend: Spend) -> bytes:
    """Protocol 2 writes bytes as a text in which every letter is one byte."""
    if not (len(args) == 2 and isinstance(args[0], str) and isinstance(args[1], str)):
        raise Refused("encodes something that is no text")
    if args[1] not in ("latin1", "latin-1"):
        raise Refused(f"encodes a text as {shown(args[1], 20)!r}")
    spend(len(args[0]))
    return args[0].encode("latin-1")


def _no_bytes(args: tuple[Value, ...], spend: Spend) -> bytes:
    if args:
        raise Refused("calls bytes with arguments")
    return b""


def _ordered_dict(args: tuple[Value, ...], spend: Spend) -> dict[Any, Any]:
    if args and not (len(args) == 1 and isinstance(args[0], (list, tuple)) and not args[0]):
        raise Refused("calls OrderedDict with arguments")
    return {}


def _rebuild_tensor(args: tuple[Value, ...], spend: Spend) -> InertArray:
    if not 4 <= len(args) <= 7 or not isinstance(args[0], Storage):
        raise Refused("rebuilds a tensor from something else than a storage")
    storage, offset, size, stride = args[:4]
    if not (is_shape(size) and is_shape(stride) and len(size) == len(stride)):
        raise Refused("has a tensor of impossible shape")
    if not (type(offset) is int and 0 <= offset <= storage.numel):
        raise Refused("has a tensor outside its storage")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > storage.numel or (count and last >= storage.numel):
        raise Refused(f"has a tensor of {count} numbers in a storage of {storage.numel}")
    return InertArray.later(lambda: _view(storage, offset, size, stride))


_NDARRAY = Global("numpy.ndarray")
_STORAGES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": "bf16",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "b1",
}
GLOBALS: dict[tuple[str, str], Global] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Global("numpy.dtype", _dtype),
    ("_codecs", "encode"): Global("_codecs.encode", _encode),
    ("__builtin__", "bytes"): Global("bytes", _no_bytes),
    ("builtins", "bytes"): Global("bytes", _no_bytes),
    ("collections", "OrderedDict"): Global("OrderedDict", _ordered_dict),
    ("torch._utils", "_rebuild_tensor_v2"): Global("_rebuild_tensor_v2", _rebuild_tensor),
    **{
        (f"{core}.multiarray", "_reconstruct"): Global("_reconstruct", _reconstruct)
        for core in ("numpy.core", "numpy._core")
    },
    **{
        (f"{core}.multiarray", "scalar"): Global("scalar", _scalar)
        for core in ("numpy.core", "numpy._core")
    },
    **{
        (f"{core}.numeric", "_frombuffer"): Global("_frombuffer", _from_buffer)
        for core in ("numpy.core", "numpy._core")
    },
    **{
        ("torch", f"{name}Storage"): Global(f"torch.{name}Storage", storage=code)
        for name, code in _STORAGES.items()
    },
}
"""Every name that a file may use, in NumPy 1's and NumPy 2's spelling."""


def named_value(module: object, name: object) -> Global:
    """Return what a name of the file stands for; Refused, saying which, for a name that is not in `GLOBALS`."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Refused("names something with no text")
    found = GLOBALS.get((module, name))
    if found is None:
        raise Refused(
            f"names {shown(module)}.{shown(name)}, which no label file needs; it was not run"
        )
    return found


def build(target: Value, state: Value) -> None:
    """Give a dtype or an array its state; Refused for anything else."""
    if type(target) is Dtype:
        # (version, byte order, subarray, names, fields, ...): plain numbers have neither of the three
        if not (
            type(state) is tuple
            and len(state) == 8
            and state[1] in ("<", "|", b"<", b"|")
            and state[2] is state[3] is state[4] is None
        ):
            raise Refused("has numbers of a structured or big-endian dtype")
        return
    if type(target) is not InertArray:
        raise Refused("sets the state of something that is no array")
    if not (
        type(state) is tuple and len(state) == 5 and state[0] == 1 and isinstance(state[2], Dtype)
    ):
        raise Refused("has an array of unknown form")
    _, shape, dtype, fortran, raw = state
    if not isinstance(raw, (bytes, bytearray)) or not isinstance(fortran, bool):
        raise Refused("has an array that holds no numbers")
    target.set(_shaped(raw, dtype.dtype, shape, fortran=fortran))


def is_shape(value: Value) -> bool:
    """Whether a value is a tuple of up to 8 whole numbers."""
    return (
        type(value) is tuple
        and len(value) <= MAX_AXES
        and all(type(n) is int and 0 <= n < 1 << 48 for n in value)
    )


def _shaped(
    raw: bytes | bytearray,
    dtype: np.dtype[Any],
    shape: Value,
    *,
    fortran: bool,
) -> NDArray[Any]:
    if not is_shape(shape):
        raise Refused("has an array of impossible shape")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise Refused(
            f"declares an array of {math.prod(shape) * dtype.itemsize} bytes and gives {len(raw)}"
        )
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def _view(
    storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> NDArray[Any]:
    if storage.data is None or len(storage.data) != storage.num_bytes:
        raise Refused("has a tensor without its storage")
    wide = storage.dtype == "bf16"
    dtype = _DTYPES["u2" if wide else storage.dtype]
    if math.prod(size) == 0:
        return np.zeros(size, "<f4" if wide else dtype)
    array: NDArray[Any] = np.ndarray(
        size, dtype, storage.data, offset * dtype.itemsize, [n * dtype.itemsize for n in stride]
    )
    return (array.astype(np.uint32) << 16).view(np.float32) if wide else array


def storage_of(persistent: tuple[Any, ...]) -> tuple[str, Storage]:
    """Key and storage of a torch persistent id: ("storage", type, key, location, number of elements, ...)."""
    if not (len(persistent) in (5, 6) and isinstance(persistent[0], (str, bytes))):
        raise Refused("refers to something outside of it")
    kind, numbers, key, _, numel = persistent[:5]
    if (
        kind not in ("storage", b"storage")
        or type(numbers) is not Global
        or numbers.storage is None
    ):
        raise Refused("refers to something that is no storage")
    if len(persistent) == 6 and persistent[5] is not None:
        raise Refused("has a storage that is part of another")
    if isinstance(key, bytes):
        key = key.decode("ascii", "replace")
    if not (isinstance(key, str) and len(key) <= MAX_NAME_BYTES):
        raise Refused("has a storage without a name")
    if not (type(numel) is int and 0 <= numel < 1 << 40):
        raise Refused("has a storage of impossible size")
    return key, Storage(numbers.storage, numel)


def array_of(value: Value, what: str) -> NDArray[Any]:
    """The array that a value is; Refused, naming `what`, for anything else."""
    if isinstance(value, InertArray):
        return value.array()
    raise Refused(f"{what} is {kind_of(value)}, not an array")


def kind_of(value: Value) -> str:
    """A value's type for a message; its content is not looked at."""
    return "nothing" if value is None else f"a {type(value).__name__}"
