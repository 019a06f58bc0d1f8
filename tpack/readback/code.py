"""What the code of a forward says around the point where it runs: names, counts and branches."""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import torch

import tpack


def _folders(*files: str | None) -> tuple[str, ...]:
    """Return the folders of files, as they are spelled and without links."""
    paths = [Path(file or "") for file in files]
    return tuple(f"{one.parent}{os.sep}" for path in paths for one in (path, path.resolve()))


#: Folders whose frames are not those of a person's code.
_OURS = _folders(torch.__file__, tpack.__file__)
#: Folders whose frames only note what others do.
_READING = _folders(torch.__file__, __file__)


def frames(above: tuple[str, ...] = _READING) -> Iterator[FrameType]:
    """Yield the frames of code outside some folders, from the innermost."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        if not frame.f_code.co_filename.startswith(above):
            yield frame
        frame = frame.f_back


def place() -> str:
    """Return the file and line that a person's code is at."""
    frame = next(frames(_OURS), None)
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def place_of(error: BaseException) -> str:
    """Return the innermost line of a person's code in a traceback."""
    found, at = "", error.__traceback__
    while at is not None:
        name = at.tb_frame.f_code.co_filename
        if not name.startswith(_OURS):
            found = f"{name}:{at.tb_lineno}"
        at = at.tb_next
    return found


@cache
def _instructions(code: CodeType) -> tuple[dis.Instruction, ...]:
    return tuple(one for one in dis.get_instructions(code) if one.opname != "CACHE")


def _after(frame: FrameType) -> tuple[dis.Instruction, ...]:
    return tuple(one for one in _instructions(frame.f_code) if one.offset > frame.f_lasti)


def stored_names(code: CodeType) -> list[str]:
    """Return the variables that running code stores the value it computes to."""
    for frame in frames():
        if frame.f_code is code:
            return _stores(_after(frame))
    return []


def _stores(following: tuple[dis.Instruction, ...]) -> list[str]:
    names: list[str] = []
    for instruction in following:
        if instruction.opname == "UNPACK_SEQUENCE" and not names:
            continue
        if not instruction.opname.startswith("STORE_FAST"):
            break
        several = isinstance(instruction.argval, tuple)  # two in one, from Python 3.13 on
        stored = instruction.argval if several else (instruction.argval,)
        names += stored[:1] if instruction.opname.endswith("LOAD_FAST") else stored
    return names


def unpacked_count() -> int | None:
    """Return how many names a value is unpacked to; None if it is not unpacked."""
    frame = next(frames(), None)
    if frame is None:
        return None
    at = next((i for i in _instructions(frame.f_code) if i.offset == frame.f_lasti), None)
    if at is not None and at.opname == "UNPACK_SEQUENCE":
        return int(at.arg or 0)
    return None


def raising_branch() -> bool | None:
    """Return the answer that keeps a condition from raising; None if neither or both do."""
    frame = next(frames(), None)
    if frame is None or frame.f_code.co_exceptiontable:
        return None
    every = _instructions(frame.f_code)
    at = [one for one in every if one.offset >= frame.f_lasti][:4]
    jump = next((one for one in at if "JUMP" in one.opname), None)
    if jump is None or "IF" not in jump.opname or "NONE" in jump.opname:
        return None
    if any(one.opname in ("UNARY_NOT", "CALL") for one in at[1 : at.index(jump)]):
        return None
    jumps_if = "TRUE" in jump.opname
    ahead = _raises([one for one in every if one.offset > jump.offset])
    there = _raises([one for one in every if one.offset >= jump.argval])
    if ahead == there:
        return None
    return jumps_if if ahead else not jumps_if


def _raises(following: list[dis.Instruction]) -> bool:
    for one in following:
        if one.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in one.opname or one.opname.startswith(("STORE", "RETURN", "FOR_ITER", "YIELD")):
            return False
    return False


def same_code(first: object, second: object) -> bool:
    """Return whether two functions compute the same, as far as their code shows."""
    one, other = getattr(first, "__code__", None), getattr(second, "__code__", None)
    if one is None or other is None:
        return False
    defaults = ("__defaults__", "__kwdefaults__")
    return equal(one, other) and all(
        getattr(first, name) == getattr(second, name) for name in defaults
    )


def compiled(text: str, file: str) -> Iterator[CodeType]:
    """Yield the code of all functions in the text of a file.

    Raises:
        SyntaxError, ValueError: it is no text of Python.
    """
    waiting = [compile(text, file, "exec", dont_inherit=True)]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [one for one in code.co_consts if isinstance(one, CodeType)]


def equal(one: CodeType, other: CodeType) -> bool:
    """Return whether two codes do the same; docstrings do nothing."""
    if (one.co_code, one.co_names, one.co_varnames) != (
        other.co_code,
        other.co_names,
        other.co_varnames,
    ):
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    pairs = list(zip(one.co_consts, other.co_consts, strict=True))
    if pairs and all(isinstance(docstring, str) for docstring in pairs[0]):
        pairs = pairs[1:]
    return all(
        equal(a, b)
        if isinstance(a, CodeType) and isinstance(b, CodeType)
        else type(a) is type(b) and a == b
        for a, b in pairs
    )
