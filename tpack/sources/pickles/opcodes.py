"""The opcodes of pickles, all of protocols 0 to 5: a row or a function each."""

from __future__ import annotations

import struct
from codecs import escape_decode
from collections.abc import Callable
from typing import Any

from tpack.errors import InputError
from tpack.sources.pickles.machine import ROOM, STEP, Machine, Persistent
from tpack.sources.pickles.values import Array, ArrayType, Global, Placeholder
from tpack.text import size

#: Digits of an int in text, bytes of one in bits.
_DIGITS, _LONG = 4000, 1 << 12

Operation = Callable[[Machine], object]
_STOP = ord(".")


def _unknown(machine: Machine) -> None:
    raise ValueError(f"opcode {machine.data[machine.at - 1]}")


_OPERATIONS: list[Operation] = [_unknown] * 256


def _opcode(code: bytes) -> Callable[[Operation], Operation]:
    def register(function: Operation) -> Operation:
        _OPERATIONS[code[0]] = function
        return function

    return register


def _constant(code: bytes, value: Any) -> None:
    _OPERATIONS[code[0]] = lambda machine: machine.stack.append(value)


def _fresh(code: bytes, make: type, cost: int) -> None:
    def operation(machine: Machine) -> None:
        machine.room -= cost
        machine.stack.append(make())

    _OPERATIONS[code[0]] = operation


for _code, _operation in (
    (b"1", lambda machine: machine.marked()),
    (b"2", lambda machine: machine.stack.append(machine.stack[-1])),
    (b"\x95", lambda machine: machine.take(8)),  # how much to read at once
    (b"a", lambda machine: machine.append([machine.stack.pop()])),
    (b"e", lambda machine: machine.append(machine.marked())),
    (b"u", lambda machine: machine.set_items(machine.marked())),
    (b"p", lambda machine: machine.put(_digits(machine.line()))),
    (b"g", lambda machine: machine.stack.append(machine.memo[_digits(machine.line())])),
    (b"\x94", lambda machine: machine.put(len(machine.memo))),
    (b"P", lambda machine: machine.stack.append(machine.persistent(machine.line().decode()))),
):
    _OPERATIONS[_code[0]] = _operation


def _number(code: bytes, form: str) -> None:
    kind = struct.Struct(form)
    length, unpack_from = kind.size, kind.unpack_from

    def operation(machine: Machine) -> None:
        at = machine.at
        machine.at = at + length
        if machine.at > len(machine.data):
            raise EOFError
        machine.stack.append(unpack_from(machine.data, at)[0])

    _OPERATIONS[code[0]] = operation


def _counted(code: bytes, form: str, make: Callable[[bytes], Any]) -> None:
    """An opcode that is followed by a number of bytes, and the bytes."""
    kind = struct.Struct(form)

    def operation(machine: Machine) -> None:
        found = machine.take(machine.number(kind))
        machine.room -= 64 + len(found) * (2 if found.isascii() else 5)
        machine.stack.append(make(found))

    _OPERATIONS[code[0]] = operation


def _text_line(code: bytes, make: Callable[[bytes], Any]) -> None:
    def operation(machine: Machine) -> None:
        found = machine.line()
        machine.room -= 64 + 5 * len(found)
        machine.stack.append(make(found))

    _OPERATIONS[code[0]] = operation


def _text(found: bytes) -> str:
    return str(found, "utf-8", "surrogatepass")


def _old_text(found: bytes) -> str | bytes:
    """Python 2 has one type for text and bytes."""
    try:
        return found.decode()
    except UnicodeDecodeError:
        return found


def _quoted(found: bytes) -> str | bytes:
    found = found.strip()
    if len(found) < 2 or found[:1] not in b"\"'" or found[-1:] != found[:1]:
        raise ValueError
    return _old_text(escape_decode(found[1:-1])[0])


def _long(found: bytes) -> int:
    if len(found) > _LONG:
        raise ValueError
    return int.from_bytes(found, "little", signed=True)


def _digits(found: bytes) -> int:
    if len(found) > _DIGITS:
        raise ValueError
    return int(found.strip().removesuffix(b"L"))


def _bit_or_digits(found: bytes) -> int:
    return found == b"01" if found in (b"00", b"01") else _digits(found)


for _code, _value in ((b"N", None), (b"\x88", True), (b"\x89", False), (b")", ())):
    _constant(_code, _value)
for _code, _make, _cost in ((b"]", list, 96), (b"}", dict, 256), (b"\x8f", set, 256)):
    _fresh(_code, _make, _cost)
for _code, _form in ((b"K", "<B"), (b"M", "<H"), (b"J", "<i"), (b"G", ">d")):
    _number(_code, _form)
for _code, _form, _read in (
    (b"U", "<B", _old_text),
    (b"T", "<i", _old_text),
    (b"X", "<I", _text),
    (b"\x8c", "<B", _text),
    (b"\x8d", "<Q", _text),
    (b"C", "<B", bytes),
    (b"B", "<I", bytes),
    (b"\x8e", "<Q", bytes),
    (b"\x96", "<Q", bytearray),
    (b"\x8a", "<B", _long),
    (b"\x8b", "<i", _long),
):
    _counted(_code, _form, _read)
for _code, _line in (
    (b"I", _bit_or_digits),
    (b"L", _digits),
    (b"F", float),
    (b"S", _quoted),
    (b"V", lambda found: str(found, "raw-unicode-escape")),
):
    _text_line(_code, _line)


@_opcode(b"(")
def _mark(machine: Machine) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []
    machine.room -= 64


@_opcode(b"0")
def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


@_opcode(b"\x80")
def _protocol(machine: Machine) -> None:
    if machine.take(1)[0] > 5:
        raise ValueError


def _tuple(code: bytes, length: int) -> None:
    def operation(machine: Machine) -> None:
        if len(machine.stack) < length:
            raise IndexError
        machine.room -= 96
        machine.stack[-length:] = [tuple(machine.stack[-length:])]

    _OPERATIONS[code[0]] = operation


for _code, _length in ((b"\x85", 1), (b"\x86", 2), (b"\x87", 3)):
    _tuple(_code, _length)


@_opcode(b"t")
def _tuple_of_marked(machine: Machine) -> None:
    found = machine.marked()
    machine.room -= 64 + 8 * len(found)
    machine.stack.append(tuple(found))


@_opcode(b"l")
def _list_of_marked(machine: Machine) -> None:
    found = machine.marked()
    machine.room -= 96
    machine.stack.append(found)


@_opcode(b"d")
def _dict_of_marked(machine: Machine) -> None:
    found = machine.marked()
    machine.room -= 256
    machine.stack.append({})
    machine.set_items(found)


@_opcode(b"\x91")
def _frozenset_of_marked(machine: Machine) -> None:
    found = machine.marked()
    machine.room -= 256
    machine.hold(found)
    machine.stack.append(frozenset(found))


@_opcode(b"\x90")
def _add_marked(machine: Machine) -> None:
    found = machine.marked()
    into = machine.stack[-1]
    if isinstance(into, Placeholder):
        into.items += found
        return
    if type(into) is not set:
        raise TypeError
    machine.hold(found)
    into.update(found)


@_opcode(b"s")
def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _memo(form: str, put: bytes, get: bytes) -> None:
    kind = struct.Struct(form)

    def store(machine: Machine) -> None:
        machine.put(machine.number(kind))

    def fetch(machine: Machine) -> None:
        machine.stack.append(machine.memo[machine.number(kind)])

    _OPERATIONS[put[0]], _OPERATIONS[get[0]] = store, fetch


_memo("<B", b"q", b"h")
_memo("<I", b"r", b"j")


@_opcode(b"Q")
def _persistent(machine: Machine) -> None:
    machine.room -= 256
    machine.stack.append(machine.persistent(machine.stack.pop()))


@_opcode(b"c")
def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.stack.append(machine.find(f"{module.decode()}.{name.decode()}"))


@_opcode(b"\x93")
def _global_of_stack(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    machine.stack.append(machine.find(f"{module}.{name}"))


def _extension(code: bytes, form: str) -> None:
    kind = struct.Struct(form)

    def operation(machine: Machine) -> None:
        machine.stack.append(machine.find(f"copyreg.extension.{machine.number(kind)}"))

    _OPERATIONS[code[0]] = operation


for _code, _form in ((b"\x82", "<B"), (b"\x83", "<H"), (b"\x84", "<i")):
    _extension(_code, _form)


@_opcode(b"R")
@_opcode(b"\x81")
def _reduce(machine: Machine) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = machine.make(machine.stack[-1], args)


@_opcode(b"\x92")
def _new_with_keywords(machine: Machine) -> None:
    kwargs, args = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = machine.make(machine.stack[-1], args, kwargs)


@_opcode(b"o")
def _object(machine: Machine) -> None:
    found = machine.marked()
    machine.stack.append(machine.make(found[0], tuple(found[1:])))


@_opcode(b"i")
def _instance(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    kind = machine.find(f"{module.decode()}.{name.decode()}")
    args = tuple(machine.marked())
    machine.stack.append(machine.make(kind, args))


@_opcode(b"b")
def _build(machine: Machine) -> None:
    """Give an object its state; that of a plain value is attributes beside it."""
    state, into = machine.stack.pop(), machine.stack[-1]
    if isinstance(into, Placeholder):
        into.state = state
    elif isinstance(into, Array | ArrayType):
        into.take(state)


def read_pickle(
    data: bytes, persistent: Persistent, start: int = 0, room: int = ROOM
) -> tuple[Any, int, dict[str, Global]]:
    """Read a pickle of any protocol from ``start`` on.

    Args:
        data: with the pickle in it.
        persistent: gives the value for a persistent id.
        room: bytes that its values may take.

    Returns:
        The value, where the pickle ends, and the globals that it names, in order.

    Raises:
        InputError: its values take more room.
        EOFError: it goes on after the data.
        Exception: it is damaged; of any class.
    """
    machine = Machine(data, persistent, start, room)
    operations = _OPERATIONS
    while machine.room > 0:
        if machine.at >= len(data):
            raise EOFError
        code = data[machine.at]
        machine.at += 1
        machine.room -= STEP
        if code == _STOP:
            return machine.stack.pop(), machine.at, machine.named
        operations[code](machine)
    raise InputError(
        f"holds a pickle whose values take over {size(room)} beside its tensors. Save the state "
        "dict alone: torch.save(model.state_dict(), path)."
    )
