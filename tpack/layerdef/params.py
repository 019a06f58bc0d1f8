"""Check parameters and constants by themselves, before the body of a layer is checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tpack.codec import GRANULARITIES, LAYOUTS, Scale
from tpack.dtypes import BY_NAME, SCALE_DTYPES, WHOLE
from tpack.errors import LayerDefError, UsageError
from tpack.layerdef.builtin import BUILTIN, Builtin
from tpack.layerdef.constants import CONSTANTS, MAX_VALUES, constant_shape
from tpack.layerdef.names import check_attribute, check_identifier, is_position
from tpack.layerdef.nodes import Arg, Param, Sizes
from tpack.layerdef.ops import REQUIRED, OpParam
from tpack.layerdef.serialization import MAX_DEPTH, MAX_INT
from tpack.text import printable
from tpack.wording import either, nearest

#: Modules that a program may unfold to, and copies that a layer may have.
MAX_INSTANCES = 100_000
MAX_RANK = 16

_EQUATION = re.compile(r"[A-Za-z]{0,16}(,[A-Za-z]{0,16}){0,7}->[A-Za-z]{0,16}", re.ASCII)

PARAM_TYPES = ("TernaryTensor", "Tensor", "Buffer", "Constant", "Cache", "Layer")


def check_number(value: object, path: str) -> None:
    """Check that a literal in an expression is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LayerDefError(f"is {value!r:.40}, expected a number.", node=path)
    if not math.isfinite(value) if isinstance(value, float) else abs(value) > MAX_INT:
        raise LayerDefError("is not finite, or beyond 64 bits.", node=path)


def check_constant(param: OpParam, value: object, path: str) -> None:
    """Check a constant against a kind of ``ops``: int, float, bool, dtype or words."""
    if value is None and param.default is None:
        return
    kind = param.kind
    if "|" in kind:
        good = isinstance(value, str) and value in kind.split("|")
    elif kind == "dtype":
        good = isinstance(value, str) and value in WHOLE
    elif kind == "scale":
        good = isinstance(value, str) and _is_scale(value)
    elif kind == "bool":
        good = isinstance(value, bool)
    elif kind == "equation":
        good = isinstance(value, str) and _EQUATION.fullmatch(value) is not None
    elif kind == "numbers":
        good = isinstance(value, tuple) and all(map(_is_finite, value))
    elif kind == "value" and isinstance(value, str):
        good = value in ("inf", "-inf")
    elif kind in ("ints", "window") and isinstance(value, tuple):
        good = all(type(item) is int and abs(item) <= MAX_INT for item in value)
    elif kind in ("int", "ints", "window"):
        good = type(value) is int and abs(value) <= MAX_INT
    else:
        good = _is_finite(value)
    if not good:
        raise LayerDefError(f"is {value!r:.40}, expected {kind}.", node=path)


def check_sizes(sizes: Sizes | None, path: str) -> None:
    """Check a shape that is noted for readers: numbers and names, at most ``MAX_RANK`` of them.

    Codegen prints it into a comment, so a name may have letters, digits and ``_`` only.
    """
    if sizes is None:
        return
    if len(sizes) > MAX_RANK:
        raise LayerDefError(f"has {len(sizes)} sizes, beyond {MAX_RANK} dims.", node=path)
    for i, size in enumerate(sizes):
        if isinstance(size, str):
            check_identifier(size, f"{path}[{i}]")
        elif type(size) is not int or not 0 <= size <= MAX_INT:
            raise LayerDefError(f"is {size!r:.40}, expected a size.", node=f"{path}[{i}]")


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_scale(text: str) -> bool:
    try:
        Scale.parse(text)
    except UsageError:
        return False
    return True


def check_param(param: Param, path: str, layers: set[str]) -> None:
    """Check one parameter by itself.

    Raises:
        LayerDefError: with the path of the field.
    """
    kind = param.param_type
    if kind not in PARAM_TYPES:
        raise LayerDefError(
            f"param_type {kind!r:.40} is unknown, expected {', '.join(PARAM_TYPES)}.", node=path
        )
    if param.sizes is not None and (param.is_cache or not param.is_input):
        raise LayerDefError("has sizes, but is no input tensor. Remove them.", node=path)
    check_sizes(param.sizes, f"{path}.sizes")
    if kind == "Layer":
        check_child_name(param.name, path)
        _check_child(param, path, layers)
        return
    check_identifier(param.name, path)
    if param.layer is not None or param.repeat is not None:
        raise LayerDefError(f"has fields of a Layer, but is a {kind}. Remove them.", node=path)
    if kind == "Constant":
        _check_formula(param, path)
    elif param.args or param.formula is not None:
        raise LayerDefError(f"has fields of a Constant, but is a {kind}. Remove them.", node=path)
    if kind == "Cache" and (param.shape is not None or param.dtype != "float32"):
        raise LayerDefError("is a Cache with a shape or dtype, expected none.", node=path)
    if kind == "TernaryTensor":
        _check_ternary(param, path)
    elif (param.scale, param.layout, param.split) != ("tensor", "t2", None):
        raise LayerDefError(
            f"has fields of a TernaryTensor, but is a {kind}. Remove them.", node=path
        )
    elif param.dtype not in (known := BY_NAME if kind == "Buffer" else WHOLE):
        raise LayerDefError(
            f"dtype {param.dtype!r:.40} is unknown, expected {either(known)}.", node=path
        )
    elif kind == "Buffer" and param.shape is None:
        raise LayerDefError("a Buffer has no shape, expected one. Add it.", node=path)
    elif kind == "Tensor" and param.shape is not None and not BY_NAME[param.dtype].is_float:
        raise LayerDefError(f"a stored Tensor is float, not {param.dtype}. Use Buffer.", node=path)
    _check_shape(param.shape or (), path, lowest=1 if kind == "TernaryTensor" else 0)


def _check_formula(param: Param, path: str) -> None:
    row = CONSTANTS.get(str(param.formula))
    args = dict(param.args)
    if row is None:
        raise LayerDefError(
            f"formula {param.formula!r:.40} is unknown, expected {', '.join(CONSTANTS)}.",
            node=path,
        )
    if set(args) != {item.name for item in row.params}:
        raise LayerDefError(
            f"formula {row.name} has arguments {printable(', '.join(sorted(args)) or 'none')}, "
            f"expected {', '.join(item.name for item in row.params)}.",
            node=path,
        )
    for item in row.params:
        check_constant(item, args[item.name], path)
    shape = param.shape or ()
    if shape != constant_shape(row.name, args, shape):
        raise LayerDefError(
            f"shape {shape!r:.60} is not that of its formula, expected "
            f"{constant_shape(row.name, args, shape)}.",
            node=path,
        )
    _check_shape(shape, path, lowest=1)
    count, listed = math.prod(shape), args.get("values")
    if count > MAX_VALUES or (isinstance(listed, tuple) and len(listed) != count):
        raise LayerDefError(
            f"shape {shape!r:.60} does not fit its values, of which there are at most "
            f"{MAX_VALUES}.",
            node=path,
        )


def _check_ternary(param: Param, path: str) -> None:
    if not param.shape:
        raise LayerDefError("a TernaryTensor needs a shape of at least one dim.", node=path)
    if param.dtype not in SCALE_DTYPES:
        raise LayerDefError(
            f"dtype {param.dtype!r:.40} is not a dtype of scales, expected "
            f"{', '.join(SCALE_DTYPES)}.",
            node=path,
        )
    if not isinstance(param.scale, str) or not _is_scale(param.scale):
        raise LayerDefError(
            f"scale {param.scale!r:.40} is unknown, expected {either(GRANULARITIES)}.",
            node=path,
        )
    if param.layout not in LAYOUTS:
        raise LayerDefError(
            f"layout {param.layout!r:.40} is unknown, expected {either(LAYOUTS)}.", node=path
        )
    if type(param.rows_split) is not int or not 0 <= param.rows_split < len(param.shape):
        raise LayerDefError(
            f"split {param.split} leaves no column of shape {param.shape}.", node=path
        )


def _check_shape(shape: tuple[int, ...], path: str, lowest: int) -> None:
    if len(shape) > MAX_RANK:
        raise LayerDefError(f"shape has {len(shape)} dims, expected at most {MAX_RANK}.", node=path)
    for size in shape:
        if type(size) is not int or size < lowest:
            raise LayerDefError(
                f"shape {shape!r:.60} has size {size!r:.20}, expected integers from {lowest}.",
                node=path,
            )
    if math.prod(shape) > MAX_INT:
        raise LayerDefError("shape has over 2^63 elements.", node=path)


def check_child_name(name: str, path: str) -> None:
    """Check that the dotted name of a child consists of identifiers and positions.

    Raises:
        LayerDefError: at ``path``, with the part that is neither.
    """
    parts = name.split(".")
    if len(parts) > MAX_DEPTH:
        raise LayerDefError(f"name {name!r:.60} is nested deeper than {MAX_DEPTH}.", node=path)
    if len(parts) > 1 and is_position(parts[0]):
        raise LayerDefError(
            f"name {name!r:.60} begins with a position, expected a name. Rename it.", node=path
        )
    for part in parts:
        if not is_position(part):
            check_attribute(part, path)


def _check_child(param: Param, path: str, layers: set[str]) -> None:
    if param.shape is not None or param.split is not None or param.formula is not None:
        raise LayerDefError(
            "is a Layer with a shape, split or formula, expected none. Remove them.", node=path
        )
    if param.repeat is not None and not (
        type(param.repeat) is int and 1 <= param.repeat <= MAX_INSTANCES
    ):
        raise LayerDefError(
            f"repeat is {param.repeat!r:.20}, expected 1 to {MAX_INSTANCES}.", node=path
        )
    if param.layer in layers:
        if param.args:
            raise LayerDefError(f"LayerDef {param.layer!r} takes no args. Remove them.", node=path)
    elif param.layer in BUILTIN:
        _check_args(BUILTIN[param.layer], dict(param.args), path)
    else:
        raise LayerDefError(
            f"layer {param.layer!r:.60} is neither a LayerDef of the program nor built in."
            f"{nearest(str(param.layer), [*layers, *BUILTIN])}",
            node=path,
        )


def _check_args(row: Builtin, args: Mapping[str, Arg], path: str) -> None:
    declared = {item.name: item for item in row.params}
    for name, value in args.items():
        if name not in declared:
            raise LayerDefError(
                f"{row.name} takes no argument {name!r:.60}.{nearest(name, declared)}", node=path
            )
        check_constant(declared[name], value, f"{path}.args.{name}")
    for item in row.params:
        if item.default is REQUIRED and item.name not in args:
            raise LayerDefError(f"{row.name} lacks argument {item.name!r}. Add it.", node=path)
    groups = args.get("groups", 1)
    sizes = [args.get(name) for name in ("in_channels", "out_channels", "num_channels")]
    divisor = args.get("num_groups", groups)
    if type(divisor) is not int or divisor < 1:
        raise LayerDefError(f"groups is {divisor!r:.20}, expected 1 or more.", node=path)
    if any(isinstance(size, int) and size % divisor for size in sizes):
        raise LayerDefError(f"channels are not divisible by groups {divisor}.", node=path)
    given = {item.name: args.get(item.name, item.default) for item in row.params}
    try:
        tensors = row.stored(given)
    except LayerDefError as error:
        raise LayerDefError(error.message, node=path) from error
    for stored in tensors:
        check_param(stored, f"{path}.{stored.name}", set())
