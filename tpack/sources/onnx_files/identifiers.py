"""Names of tensors as paths of modules, for graphs whose names are no paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tpack.layerdef.names import is_identifier, is_position

#: What TensorFlow puts around the names of variables.
_AROUND = re.compile(r"^StatefulPartitionedCall(?:_\d+)?/|/ReadVariableOp(?:_\d+)?(?::0)?$")
_LONGEST = 64


def as_paths(names: Iterable[str]) -> dict[str, str]:
    """Give each name that is no path of attributes one that is.

    Returns:
        Name → path, of the names that change.

    Example:
        >>> as_paths(["fc.weight", "onnx::Mul_7", "seq/dense/MatMul/ReadVariableOp:0", "12"])
        {'onnx::Mul_7': 'onnx_Mul_7', 'seq/dense/MatMul/ReadVariableOp:0': 'seq.dense.MatMul', '12': 'tensor_12'}
    """  # noqa: E501  # one line of output
    names = list(names)
    taken: set[str] = set()
    inner: set[str] = set()

    def take(path: str) -> bool:
        """Take a path if no tensor has it, it is no module, and no module in it is a tensor."""
        parts = path.split(".")
        above = {".".join(parts[:end]) for end in range(1, len(parts))}
        if path in taken or path in inner or above & taken:
            return False
        taken.add(path)
        inner.update(above)
        return True

    plain = {name for name in names if _is_path(name) and take(name)}
    found = {}
    for name in names:
        if name not in plain and (path := next(filter(take, _wishes(name)), None)) is not None:
            found[name] = path
    return found


def _is_path(name: str) -> bool:
    *owners, last = name.split(".")
    return is_identifier(last) and all(is_identifier(one) or is_position(one) for one in owners)


def _wishes(name: str) -> Iterator[str]:
    for text in dict.fromkeys((_AROUND.sub("", name), name)):
        parts = [part for part in map(_part, re.split(r"[/.]+", text)) if part]
        if parts and is_identifier(parts[-1]):
            yield ".".join(parts)
        elif parts:
            yield ".".join([*parts[:-1], f"tensor_{parts[-1]}"])
    whole = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[: _LONGEST - 16]
    for number in range(1, 1000):
        yield f"tensor_{whole}_{number}"


def _part(text: str) -> str:
    word = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")[:_LONGEST]
    if not word or is_identifier(word) or is_position(word):
        return word
    return (
        f"{word[: _LONGEST - 1]}_"
        if is_identifier(f"{word[: _LONGEST - 1]}_")
        else f"n{word}"[:_LONGEST]
    )
