"""The names that a LayerDef may give, so that no name of a file can mean anything in source.

An identifier is ASCII, at most 64 characters, no Python keyword, no name that starts with
two underscores, no attribute of ``nn.Module``, and no name the generated source uses itself.
"""

from __future__ import annotations

import builtins
import keyword
import re

from tpack.errors import LayerDefError
from tpack.layerdef.builtin import BUILTIN
from tpack.layerdef.constants import CONSTANTS
from tpack.layerdef.ops import OPS, PACKED_OPS

#: Names of children that models have and that mean something in source, but not after a dot.
_ATTRIBUTES = frozenset({"self", "F", "torch", *BUILTIN, *PACKED_OPS})

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_POSITION = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)

#: Attributes of nn.Module and nn.ModuleList; a test compares them with the installed torch.
MODULE_NAMES = frozenset(
    """
    T_destination _apply _backward_hooks _backward_pre_hooks _buffers _call_impl
    _compiled_call_impl _forward_hooks _forward_hooks_always_called _forward_hooks_with_kwargs
    _forward_pre_hooks _forward_pre_hooks_with_kwargs _get_abs_string_index _get_backward_hooks
    _get_backward_pre_hooks _get_name _is_full_backward_hook _load_from_state_dict
    _load_state_dict_post_hooks _load_state_dict_pre_hooks _maybe_warn_non_full_backward_hook
    _modules _named_members _non_persistent_buffers_set _parameters
    _register_load_state_dict_pre_hook _register_state_dict_hook _replicate_for_data_parallel
    _save_to_state_dict _slow_forward _state_dict_hooks _state_dict_pre_hooks _version
    _wrapped_call_impl add_module append apply bfloat16 buffers call_super_init children compile
    cpu cuda double dump_patches eval extend extra_repr float forward get_buffer
    get_extra_state get_parameter get_submodule half insert ipu load_state_dict modules mtia
    named_buffers named_children named_modules named_parameters parameters pop
    register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
    register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu
    zero_grad
    """.split()  # noqa: SIM905  # words read better than ninety quoted strings
)

#: Names that generated source uses, and may therefore not be given another meaning.
SOURCE_NAMES = frozenset(
    {"self", "super", "range", "torch", "nn", "F", "Tensor", "math", "annotations"}
    | {"Any", "ClassVar", "ternary_shapes", "ternary_layouts", "ternary_groups"}
    | {"PackedModule", "PackedWeight", "packed_zeros", "scale_ones", "repack_trits"}
    | {"pack_trits", "unpack_trits", "spread_scale", "activation_gain", "infer_group_size"}
    | {row.spelling.removeprefix("nn.") for row in BUILTIN.values()}
    | set(BUILTIN)
    | set(PACKED_OPS)
    | {row.spelling for row in CONSTANTS.values() if row.spelling}
    | {op.spelling for op in OPS.values() if op.spelling.isidentifier()}
)


#: Attributes of nn.ModuleDict besides those of nn.Module.
CONTAINER_NAMES = frozenset({"clear", "items", "keys", "update", "values"})


def check_word(name: str, node: str) -> None:
    """Check that the key of a result, which stands in quotes, is an ASCII identifier.

    Raises:
        LayerDefError: at ``node``.
    """
    if not _IDENTIFIER.fullmatch(name):
        raise LayerDefError(f"key {name!r:.60} is not an ASCII identifier.", node=node)


def check_identifier(name: str, node: str) -> None:
    """Check that a name is an identifier in the sense above.

    Raises:
        LayerDefError: at ``node``, saying which rule it breaks.
    """
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        reason = "is not an ASCII identifier of at most 64 characters"
    elif keyword.iskeyword(name):
        reason = "is a Python keyword"
    elif name.startswith("__"):
        reason = "starts with two underscores"
    elif name in MODULE_NAMES:
        reason = "is an attribute of nn.Module"
    elif name in SOURCE_NAMES or name.startswith("_tpack"):
        reason = "is used by the generated source itself"
    else:
        return
    raise LayerDefError(f"name {name!r:.60} {reason}. Rename it.", node=node)


def check_attribute(name: str, node: str) -> None:
    """Check the name of a child: an identifier, or a word of the source such as ``LayerNorm``.

    The name of a child stands only after ``self.``, and so hides nothing.

    Raises:
        LayerDefError: at ``node``, saying which rule it breaks.
    """
    if name not in _ATTRIBUTES:
        check_identifier(name, node)


def check_class_name(name: str, node: str) -> None:
    """Check the name of a class: an identifier that hides no builtin.

    Raises:
        LayerDefError: at ``node``, saying which rule it breaks.
    """
    check_identifier(name, node)
    if hasattr(builtins, name):
        raise LayerDefError(f"name {name!r} is a builtin of Python. Rename it.", node=node)


def is_identifier(name: str) -> bool:
    """Return whether ``check_identifier`` accepts a name."""
    try:
        check_identifier(name, "")
    except LayerDefError:
        return False
    return True


def is_position(name: str) -> bool:
    """Return whether a name is the position of a layer in a list of layers: 0 to 99999."""
    return isinstance(name, str) and _POSITION.fullmatch(name) is not None
