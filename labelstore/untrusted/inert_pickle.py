"""Pickles read as data: nothing that a file names is imported, looked up or called.

A pickle is a program for a stack machine. This one knows the operations by which numbers, texts, lists, tuples,
dictionaries, NumPy arrays and torch tensors are written (protocols 2 to 5) and refuses all others. What a name
("global") stands for is in `inert_values`. Operations, memory and the lengths of everything are bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from labelstore.untrusted.inert_values import (
    MAX_NAME_BYTES,
    Global,
    Storage,
    Value,
    build,
    named_value,
)
from labelstore.untrusted.refusal import Refused

MAX_OPERATIONS = 2_000_000
"""Most operations of one pickle: a file of ml-dr with 400 samples has 40,000, one of FKD about 90."""
MAX_DICT = 10_000
"""Entries of one dictionary."""
MAX_MEMO = 1_000_000
MAX_INT_BYTES = 16
COPIES = 4
"""Bytes of texts and arrays that may be made of one byte of the file (an array in protocol 2 takes two)."""

_INT2, _INT4, _UINT4, _UINT8, _FLOAT8 = (
    struct.Struct(code).unpack_from for code in ("<H", "<i", "<I", "<Q", ">d")
)


class _Machine:
    """One pickle at work."""

    def __init__(
        self, data: bytes, start: int, stores: Callable[[tuple[Value, ...]], Storage] | None
    ) -> None:
        self.data = data
        self.at = start
        self._stores = stores
        self._budget = COPIES * len(data) + (1 << 20)

    def spend(self, num_bytes: int) -> None:
        """Count bytes that are made out of the file's; Refused where they are more than a file can need."""
        self._budget -= num_bytes
        if self._budget < 0:
            raise Refused("makes more out of its bytes than it holds")

    def run(self) -> Value:
        """The value of the pickle; `at` is behind its end then."""
        data, at, end = self.data, self.at, len(self.data)
        stack: list[Value] = []
        push = stack.append
        pop = stack.pop
        marks: list[int] = []
        memo: dict[int, Value] = {}
        for _ in range(MAX_OPERATIONS):
            op = data[at]
            at += 1
            if op == 0x47:  # BINFLOAT
                push(_FLOAT8(data, at)[0])
                at += 8
            elif op == 0x4B:  # BININT1
                push(data[at])
                at += 1
            elif op == 0x71:  # BINPUT
                memo[data[at]] = stack[-1]
                at += 1
            elif op == 0x94:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            elif op == 0x68:  # BINGET
                push(memo[data[at]])
                at += 1
            elif op == 0x72 or op == 0x6A:  # LONG_BINPUT, LONG_BINGET
                (number,) = _UINT4(data, at)
                at += 4
                if op == 0x6A:
                    push(memo[number])
                elif number > MAX_MEMO:
                    raise Refused(f"has memo number {number}")
                else:
                    memo[number] = stack[-1]
            elif op == 0x28:  # MARK
                marks.append(len(stack))
            elif op == 0x4D:  # BININT2
                push(_INT2(data, at)[0])
                at += 2
            elif op == 0x4A:  # BININT
                push(_INT4(data, at)[0])
                at += 4
            elif op == 0x5D:  # EMPTY_LIST
                push([])
            elif op == 0x65 or op == 0x61:  # APPENDS, APPEND
                first = marks.pop() if op == 0x65 else len(stack) - 1
                items = stack[first:]
                del stack[first:]
                target = stack[-1]
                if type(target) is not list:
                    raise Refused("appends to something that is no list")
                target.extend(items)
            elif 0x85 <= op <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
                first = len(stack) - (op - 0x84)
                if first < 0:
                    raise Refused("takes more than is there")
                value: Value = tuple(stack[first:])
                del stack[first:]
                push(value)
            elif op == 0x74:  # TUPLE
                first = marks.pop()
                value = tuple(stack[first:])
                del stack[first:]
                push(value)
            elif op == 0x29:  # EMPTY_TUPLE
                push(())
            elif op == 0x7D:  # EMPTY_DICT
                push({})
            elif op == 0x75 or op == 0x73:  # SETITEMS, SETITEM
                first = marks.pop() if op == 0x75 else len(stack) - 2
                if first < 0:
                    raise Refused("takes more than is there")
                items = stack[first:]
                del stack[first:]
                _set_items(stack[-1], items)
            elif op == 0x4E:  # NONE
                push(None)
            elif op == 0x88 or op == 0x89:  # NEWTRUE, NEWFALSE
                push(op == 0x88)
            elif op in _TEXTS:
                width, text = _TEXTS[op]
                if width == 1:
                    length = data[at]
                else:
                    (length,) = (_UINT4 if width == 4 else _UINT8)(data, at)
                at += width
                if length > end - at:
                    raise Refused(f"declares {length} bytes where {end - at} are left")
                raw = data[at : at + length]
                at += length
                self.spend(length)
                if text:
                    value = raw.decode("utf-8")
                    # letters beyond Latin-1 take two or four bytes each in memory
                    self.spend(max(value.__sizeof__() - 100 - length, 0))
                    push(value)
                else:
                    push(raw)
            elif op == 0x63:  # GLOBAL
                middle = data.find(b"\n", at, at + MAX_NAME_BYTES)
                last = (
                    data.find(b"\n", middle + 1, middle + 1 + MAX_NAME_BYTES) if middle >= 0 else -1
                )
                if last < 0:
                    raise Refused("names something without an end")
                push(
                    named_value(
                        data[at:middle].decode("utf-8"), data[middle + 1 : last].decode("utf-8")
                    )
                )
                at = last + 1
            elif op == 0x93:  # STACK_GLOBAL
                name, module = pop(), pop()
                push(named_value(module, name))
            elif op == 0x52:  # REDUCE
                args, function = pop(), pop()
                if type(function) is not Global or function.call is None or type(args) is not tuple:
                    raise Refused("calls something that is no function")
                push(function.call(args, self.spend))
            elif op == 0x62:  # BUILD
                state = pop()
                build(stack[-1], state)
            elif op == 0x51:  # BINPERSID
                persistent = pop()
                if self._stores is None or type(persistent) is not tuple:
                    raise Refused("refers to something outside of it")
                push(self._stores(persistent))
            elif op == 0x8A:  # LONG1
                length = data[at]
                if length > MAX_INT_BYTES or length > end - at - 1:
                    raise Refused(f"has an integer of {length} bytes")
                push(int.from_bytes(data[at + 1 : at + 1 + length], "little", signed=True))
                at += 1 + length
            elif op == 0x80:  # PROTO
                if not 2 <= data[at] <= 5:
                    raise Refused(f"is a pickle of protocol {data[at]}; 2 to 5 are read")
                at += 1
            elif op == 0x95:  # FRAME
                (length,) = _UINT8(data, at)
                at += 8
                if length > end - at:
                    raise Refused(f"declares {length} bytes where {end - at} are left")
            elif op == 0x2E:  # STOP
                self.at = at
                if len(stack) != 1 or marks:
                    raise Refused("ends with more than one value")
                return pop()
            else:
                raise Refused(
                    f"has operation 0x{op:02x} at byte {at - 1}, which no label file needs"
                )
        raise Refused(f"has more than {MAX_OPERATIONS} operations")


# operation -> bytes of its length, and whether it is a text
_TEXTS = {
    0x58: (4, True),  # BINUNICODE
    0x8C: (1, True),  # SHORT_BINUNICODE
    0x8D: (8, True),  # BINUNICODE8
    0x42: (4, False),  # BINBYTES
    0x43: (1, False),  # SHORT_BINBYTES
    0x8E: (8, False),  # BINBYTES8
    0x96: (8, False),  # BYTEARRAY8
    0x54: (4, False),  # BINSTRING
    0x55: (1, False),  # SHORT_BINSTRING
}


def run_pickle(
    data: bytes, start: int = 0, stores: Callable[[tuple[Value, ...]], Storage] | None = None
) -> tuple[Value, int]:
    """The value of the pickle that begins at `start`, and where it ends.

    Arrays and tensors come as `InertArray`. `stores` turns a persistent id of torch into a storage. Refused for
    anything but plain data: names, operations, declared sizes, and bytes that make no sense.
    """
    machine = _Machine(data, start, stores)
    try:
        return machine.run(), machine.at
    except Refused:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error):
        raise Refused("is a damaged pickle") from None


def _set_items(target: Value, items: list[Value]) -> None:
    if type(target) is not dict or len(items) % 2:
        raise Refused("sets an item of something that is no dictionary")
    if len(target) + len(items) // 2 > MAX_DICT:
        raise Refused(f"has a dictionary of more than {MAX_DICT} entries")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # other keys can be made to collide
        if type(key) not in (str, int, bytes) or (type(key) is int and not -(2**63) <= key < 2**63):
            raise Refused("has a dictionary with keys that are no texts or integers")
        target[key] = value
