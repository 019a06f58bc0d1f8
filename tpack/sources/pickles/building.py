"""The names in pickles that become plain values, by functions of our own: a row each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tpack.sources.pickles.values import (
    Array,
    ArrayType,
    Global,
    Placeholder,
    Storage,
    Tensor,
)

#: What the classes of typed storages hold.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "QInt8Storage": "qint8",
    "QInt32Storage": "qint32",
    "QUInt8Storage": "quint8",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8",
}


def plain_size(args: tuple[Any, ...]) -> int:
    """Estimate the bytes that building takes for what it copies of its arguments."""
    texts = sum(len(arg) for arg in args if isinstance(arg, str | bytes | bytearray))
    held = sum(len(arg) for arg in args if isinstance(arg, tuple | list | dict | set | frozenset))
    return 2 * texts + 100 * held


def _sizes(found: Any) -> tuple[int, ...]:
    """Check sizes or strides, and return them as a tuple."""
    if len(found) > 64 or not all(type(n) is int and 0 <= n < 1 << 62 for n in found):
        raise ValueError
    return tuple(found)


def _class(found: Any) -> str:
    """Return the name of a class.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(found, Global):
        raise TypeError
    return found.name


def _word(found: Any) -> str:
    """Return the name of a dtype or a layout, without its module."""
    if isinstance(found, Placeholder):  # of serialization._get_layout("torch.strided")
        found = Global(str(found.args[0]))
    word = _class(found)
    if not word.isprintable():
        raise ValueError
    return word.removeprefix("torch.")


# ---- tensors


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """Of ``rest``, the third are bits of a view; the gradient and hooks do not matter."""
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise TypeError
    bits = rest[2] if len(rest) > 2 and isinstance(rest[2], dict) else {}
    conj, neg = bool(bits.get("conj")), bool(bits.get("neg"))
    place = _sizes(shape), _sizes(strides), offset, storage
    return Tensor(storage.dtype, *place, conj=conj, neg=neg)


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """As ``_tensor``, with a dtype before the bits."""
    made = _tensor(storage, offset, shape, strides, *rest[:2], *rest[3:])
    made.dtype = _word(rest[2])
    return made


def _quantized(
    storage: Any, offset: Any, shape: Any, strides: Any, quantizer: Any, *_: Any
) -> Tensor:
    made = _tensor(storage, offset, shape, strides)
    made.quantizer = (_word(quantizer[0]), *quantizer[1:])
    return made


def _meta(dtype: Any, shape: Any, *_: Any) -> Tensor:
    refused = "is on the meta device and has no values."
    return Tensor(_word(dtype), _sizes(shape), refused=refused)


def _sparse(layout: Any, data: Any) -> Tensor:
    values = next(part for part in data[1:] if isinstance(part, Tensor))
    refused = f"is torch.{_word(layout)}. Make it dense: .to_dense()."
    return Tensor(values.dtype, values.shape, refused=refused)


def _nested(buffer: Any, *_: Any) -> Tensor:
    refused = "is nested, of no one shape. Pad it to a tensor."
    return Tensor(buffer.dtype, buffer.shape, refused=refused)


def _wrapper(kind: Any, dtype: Any, shape: Any, *_: Any) -> Tensor:
    name = _class(kind)
    refused = (
        f"is a {name.rpartition('.')[2]} of {name.partition('.')[0]}, which is packed, expected a "
        "plain tensor. Convert the unquantized model, or call dequantize() on it first."
    )
    return Tensor(_word(dtype), _sizes(shape), refused=refused)


def _same(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError
    return data


def _elsewhere(data: Any, dtype: Any, *_: Any) -> Tensor:
    """A tensor of a device that has no storages, saved by way of the processor."""
    if _word(dtype) != _same(data).dtype:
        raise TypeError
    return _same(data)


def _subclass(function: Any, kind: Any, args: Any, *_: Any) -> Tensor:
    """A tensor of a subclass: the plain one that it is saved as."""
    made = _same(BUILDERS[known(_class(function))](*args))
    made.kind = _class(kind)
    return made


# ---- plain values


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    """Bytes, as protocols before 3 have them."""
    if encoding not in ("latin1", "utf-8"):
        raise ValueError
    return text.encode(encoding)


def _bytes(data: Any = b"", encoding: str = "") -> bytes:
    if isinstance(data, str):
        return _encoded(data, encoding)
    if not isinstance(data, bytes | bytearray):  # of a number there would be as many zeros
        raise TypeError
    return bytes(data)


def _reconstructed(kind: Any, _: Any, state: Any) -> Placeholder:
    """An object of protocols before 2: its class, a base class, and what that is made of."""
    return Placeholder(_class(kind), () if state is None else (state,))


def _new(kind: Any, *args: Any) -> Placeholder:
    return Placeholder(_class(kind), args)


def _number(kind: ArrayType, data: bytes | str) -> Any:
    """A number of numpy."""
    return Array(kind, (), data).values[()]


def _frombuffer(data: Any, kind: ArrayType, shape: tuple[int, ...], order: str) -> Array:
    return Array(kind, shape, data, order == "F")


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _elsewhere,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": lambda sizes=(): _sizes(sizes),
    "_codecs.encode": _encoded,
    "builtins.complex": complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": lambda *args: bytearray(_bytes(*args)),
    "builtins.list": lambda items=(): list(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "collections.deque": lambda items=(), *_: list(items),
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": _new,
    "numpy.dtype": lambda code, *_: ArrayType(str(code)),
    "numpy._core.multiarray.scalar": _number,
    "numpy._core.multiarray._reconstruct": lambda *_: Array(),
    "numpy._core.numeric._frombuffer": _frombuffer,
}
#: Classes of dicts, and which argument has their first items; classes of sets.
DICTS = {
    "builtins.dict": 0,
    "collections.OrderedDict": 0,
    "collections.defaultdict": 1,
    "collections.Counter": 0,
}
SETS: dict[str, type] = {"builtins.set": set, "builtins.frozenset": frozenset}
#: Modules that were called otherwise once.
_RENAMED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core": "numpy._core",
    "torch.tensor": "torch._tensor",
}


def known(name: str) -> str:
    """Return what a name is called today."""
    for old, new in _RENAMED.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name
