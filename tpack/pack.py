"""``pack_ternary`` and ``unpack_ternary``: layout t2 for torch tensors on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tpack.codec import illegal_byte, not_a_trit
from tpack.dtypes import BY_NAME
from tpack.errors import UsageError
from tpack.kernels import selection
from tpack.nn.extension import CODES
from tpack.nn.reference import pack_trits, unpack_trits


def pack_ternary(tensor: Tensor) -> Tensor:
    """Pack ternary values, four a byte, along the last dim; each row is padded.

    Args:
        tensor: ``(..., k)``, any real dtype, values in {-1, 0, 1}, on any device.

    Returns:
        uint8 ``(..., ceil(k / 4))`` on the same device.

    Raises:
        ValueError: another value, naming the first one and its index; or no dim, no tensor.

    Example:
        >>> weights = torch.tensor([1, -1, 0, 1, 0, -1, 1, 1], dtype=torch.int8)
        >>> pack_ternary(weights)
        tensor([146, 161], dtype=torch.uint8)
    """
    _check_tensor("pack_ternary: tensor", tensor)
    tensor = tensor.resolve_neg()  # a view that negates has the bits of the other sign
    if tensor.is_complex():
        raise UsageError(f"pack_ternary: tensor is {tensor.dtype}, expected a real dtype.")
    if tensor.dim() == 0:
        raise UsageError("pack_ternary: tensor has no dim, expected (..., k).")
    if (packed := _packed_in_c(tensor)) is not None:
        return packed
    bad = (tensor != 0) & (tensor != 1)
    if tensor.dtype.is_signed:  # in an unsigned dtype -1 would mean its largest value
        bad &= tensor != -1
    if bool(bad.any()):
        index = _first(bad)
        raise not_a_trit(float(tensor[index]), index)
    return pack_trits(tensor)


def _check_tensor(what: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise UsageError(f"{what} is a {type(value).__name__}, expected a torch.Tensor.")
    if value.is_nested or value.layout != torch.strided or value.is_quantized:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else value.layout
        raise UsageError(f"{what} is {kind}, expected a plain dense one. Convert it first.")
    if value.is_meta:
        raise UsageError(f"{what} is on the meta device and has no values.")
    if str(value.dtype).removeprefix("torch.") not in BY_NAME:
        raise UsageError(f"{what} is {value.dtype}, expected a real dtype. Cast it first.")


def _first(mask: Tensor) -> tuple[int, ...]:
    """Return the index of the first true element."""
    flat = mask.flatten().to(torch.uint8).argmax().cpu()
    return tuple(int(i) for i in torch.unravel_index(flat, mask.shape))


def _unpacked(packed: Tensor, columns: int) -> Tensor:
    """Unpack bytes that have been checked to rows of int8 trits."""
    native = selection.native
    if native is None or type(packed) is not Tensor or not packed.is_cpu or not packed.numel():
        return unpack_trits(packed, columns)
    packed = packed.contiguous()
    trits = torch.empty((*packed.shape[:-1], columns), dtype=torch.int8)
    rows, threads = packed.numel() // packed.shape[-1], torch.get_num_threads()
    native.unpack(packed.data_ptr(), rows, columns, trits.data_ptr(), 3, threads)
    return trits


def _packed_in_c(tensor: Tensor) -> Tensor | None:
    """Pack in C; return None if the extension does not serve, or a value is not ternary."""
    native = selection.native
    code = 3 if tensor.dtype == torch.int8 else CODES.get(tensor.dtype)
    if native is None or code is None or type(tensor) is not Tensor or not tensor.is_cpu:
        return None
    if tensor.requires_grad or not tensor.numel():
        return None
    columns = tensor.shape[-1]
    tensor = tensor.contiguous()
    packed = torch.empty((*tensor.shape[:-1], -(-columns // 4)), dtype=torch.uint8)
    rows, threads = tensor.numel() // columns, torch.get_num_threads()
    bad = native.pack(tensor.data_ptr(), code, rows, columns, packed.data_ptr(), threads)
    return packed if bad < 0 else None


def unpack_ternary(packed: Tensor, numel: int | Sequence[int]) -> Tensor:
    """Unpack what ``pack_ternary`` made.

    Args:
        packed: uint8 ``(..., bytes)``.
        numel: the number of values: the result is flat; or a shape ``(..., k)``.

    Returns:
        int8, flat of length ``numel``, or of the shape given.

    Raises:
        ValueError: code 3, naming the byte and its index; bytes that do not fit ``numel``.

    Example:
        >>> unpack_ternary(torch.tensor([146, 161], dtype=torch.uint8), 8)
        tensor([ 1, -1,  0,  1,  0, -1,  1,  1], dtype=torch.int8)
    """
    _check_tensor("unpack_ternary: packed", packed)
    shape = (numel,) if isinstance(numel, int) else tuple(numel)
    if packed.dtype != torch.uint8:
        raise UsageError(f"unpack_ternary: packed is {packed.dtype}, expected torch.uint8.")
    invalid = (packed & (packed >> 1) & 0x55) != 0  # both bits of a code set: code 3
    if bool(invalid.any()):
        index = _first(invalid)
        raise illegal_byte(int(packed[index]), index, "t2")
    count = math.prod(shape)
    if len(shape) == 1 and packed.dim() > 1 and packed.numel():
        rows = packed.numel() // packed.shape[-1]  # packed one by one, wanted flat
        columns = count // rows
        if columns * rows == count and -(-columns // 4) == packed.shape[-1]:
            return _unpacked(packed, columns).reshape(shape)
    rows = math.prod(shape[:-1])
    columns = shape[-1] if shape else 1
    if packed.numel() == rows * -(-columns // 4):
        return _unpacked(packed.reshape(rows, -(-columns // 4)), columns).reshape(shape)
    raise UsageError(
        f"unpack_ternary: {packed.numel()} bytes of shape {tuple(packed.shape)} do not hold "
        f"{shape}, expected {rows * -(-columns // 4)} bytes."
    )
