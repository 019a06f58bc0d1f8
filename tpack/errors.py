"""Every failure that input, files or the environment can cause.

The tree::

    TpackError                      code 3
    ├── UsageError                  code 2   an option or argument contradicts another
    ├── InputError                  code 3   missing, unreadable, malformed or hostile input
    │   ├── FormatError             code 3   the bytes break a rule of docs/format.md
    │   ├── LayerDefError           code 3   the tree breaks a rule of LayerDef
    │   └── UnsupportedError        code 3   well formed, but outside what tpack handles
    ├── NotTernaryError             code 4   a value outside {-s, 0, +s}
    ├── ExistsError                 code 6   would overwrite
    └── StorageError                code 7   no space, no permission, I/O error

A message reads *Where: what was found, what was expected. What to do.* Inner code raises
the specific part; ``locate`` adds the file and the tensor on the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike, fspath

from tpack.wording import either, nearest, spell


class TpackError(Exception):
    """Any failure caused by input, file or environment.

    Args:
        message: what was found, what was expected, what to do. With ``tensor`` set it is
            the predicate of a sentence whose subject is that tensor.
        tensor: name of the tensor concerned.
        node: path of the offending node in a LayerDef, e.g. ``Mlp.body[0].value``.
        file: path of the file concerned.
    """

    code = 3
    kind = "error"

    def __init__(
        self,
        message: str,
        *,
        tensor: str | None = None,
        node: str | None = None,
        file: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.tensor = tensor
        self.node = node
        self.file = fspath(file) if file is not None else None

    def __str__(self) -> str:
        text = self.message
        if self.tensor is not None:
            text = f"tensor {self.tensor!r} {text}"
        if self.node is not None:
            text = f"{self.node}: {text}"
        if self.file is not None:
            text = f"{self.file}: {text}"
        return text


class UsageError(TpackError, ValueError):
    """An option or argument is wrong or contradicts another."""

    code = 2
    kind = "usage"


def unknown(what: str, name: object, known: Iterable[str]) -> UsageError:
    """Make the error for a name that a table does not have.

    Example:
        >>> print(unknown("target", "ggfu", ["gguf", "hf-bitnet"]))
        target 'ggfu' is unknown, expected gguf or hf-bitnet. Did you mean gguf?
    """
    expected = f"expected {either(known)}.{nearest(str(name), known)}"
    return UsageError(f"{what} {name!r:.60} is unknown, {expected}")


class InputError(TpackError):
    """The input is missing, unreadable, malformed or hostile."""

    kind = "input"


class FormatError(InputError):
    """The file breaks a rule of the format; ``rule`` is its number in docs/format.md."""

    kind = "format"

    def __init__(self, message: str, *, rule: str, tensor: str | None = None) -> None:
        super().__init__(message, tensor=tensor)
        self.rule = rule


class LayerDefError(InputError, ValueError):
    """A LayerDef is malformed, does not fit its tensors, or cannot be expressed."""

    kind = "layerdef"


class UnsupportedError(InputError):
    """The input is well formed, but outside what tpack handles."""

    kind = "unsupported"


class NotTernaryError(TpackError, ValueError):
    """A value lies outside the ternary set; ``index`` and ``value`` name the first one.

    ``tensors`` has the names of all tensors concerned, where there are several.
    """

    code = 4
    kind = "not_ternary"

    def __init__(
        self,
        message: str,
        *,
        tensor: str | None = None,
        index: tuple[int, ...] | None = None,
        value: float | None = None,
        tensors: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, tensor=tensor)
        self.index = index
        self.value = value
        self.tensors = tensors or (() if tensor is None else (tensor,))


class ExistsError(TpackError):
    """The output exists already, or is the input itself, or part of it."""

    code = 6
    kind = "exists"


def occupied(file: str | PathLike[str], found: str = "exists already") -> ExistsError:
    """Make the error for an output that only ``force`` replaces."""
    return ExistsError(f"{found}. Use {spell(force=True)} to replace it.", file=file)


class StorageError(TpackError):
    """Writing failed: no space, no permission, an I/O error."""

    code = 7
    kind = "storage"


@contextmanager
def locate(*, file: str | PathLike[str] | None = None, tensor: str | None = None) -> Iterator[None]:
    """Add the file and the tensor to a TpackError that passes and does not name them yet."""
    try:
        yield
    except TpackError as error:
        if error.file is None and file is not None:
            error.file = fspath(file)
        if error.tensor is None and tensor is not None:
            error.tensor = tensor
        raise
