"""What a caller gives to be captured: the module without wrappers, and its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tpack.errors import UsageError

#: Classes that hold a module in another, by the attribute that has it.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}


def unwrapped(module: Any) -> nn.Module:
    """Return the module that torch.compile or data parallelism wraps.

    Raises:
        UsageError: it is no module.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"a {type(module).__name__} was given, expected an nn.Module.")
    name = _WRAPPERS.get(type(module).__name__)
    inner = None if name is None else getattr(module, name, None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else module


def as_arguments(args: Any) -> tuple[Any, ...]:
    """Return example arguments as a tuple; a tensor alone is one argument.

    Raises:
        UsageError: they are no sequence, or one of them is a PackedSequence.
    """
    if args is None:
        return ()
    if isinstance(args, Tensor):
        return (args,)
    if isinstance(args, Mapping):
        raise UsageError(
            "the example arguments are a dict, expected a tuple in the order of forward. Give "
            "keyword arguments as kwargs to capture, as example_kwargs to convert."
        )
    if not isinstance(args, Sequence) or isinstance(args, str | bytes):
        raise UsageError(
            f"the example arguments are a {type(args).__name__}, expected a tuple of the arguments "
            "of forward: (x,)."
        )
    if isinstance(args, PackedSequence) or any(isinstance(one, PackedSequence) for one in args):
        raise UsageError(
            "an example argument is a PackedSequence, which LayerDef cannot express. Let forward "
            "take padded sequences as they are."
        )
    return tuple(args)


def as_keywords(kwargs: Any) -> dict[str, Any]:
    """Return example keyword arguments as a dict.

    Raises:
        UsageError: they are none.
    """
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        raise UsageError(
            f"the example keyword arguments are a {type(kwargs).__name__}, expected a dict of name "
            "and value."
        )
    return dict(kwargs)
