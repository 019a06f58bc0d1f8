"""The program that a state dict alone supports: its module tree, without the order of calls.

Leaves of a known form (linear, embedding) become built-in layers; every other module becomes
a LayerDef that owns its tensors and children and whose computation is unspecified. Modules
of the same structure share one LayerDef; a list of them becomes one repeated child.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from tpack.errors import LayerDefError
from tpack.layerdef.members import repeated
from tpack.layerdef.names import check_attribute, check_identifier, is_identifier, is_position
from tpack.layerdef.nodes import (
    BinaryOp,
    FunctionCall,
    Identifier,
    LayerDef,
    Param,
    Program,
    Return,
    Statement,
    Unspecified,
)
from tpack.layerdef.serialization import MAX_DEPTH
from tpack.layerdef.tensors import Slot

#: Words in a module's name that distinguish an embedding from a linear layer of the same shape.
EMBEDDING_WORDS = ("emb", "wte", "wpe")
#: Whole names of modules that are embeddings.
EMBEDDING_NAMES = (
    *("tok", "token", "tokens", "tok_table", "token_table", "vocab", "vocabulary", "word", "words"),
    *("chars", "wordvecs", "lookup", "lookup_table", "src_tok", "tgt_tok"),
    *("lut", "pos", "position", "positions", "positional", "pos_enc", "pos_table"),
    *("positional_encoding", "position_encoding", "pos_encoding", "w_e", "w_pos"),
)


def is_embedding(name: str) -> bool:
    """Return whether the name of a weight is that of an embedding table.

    Example:
        >>> is_embedding("model.embed_tokens.weight"), is_embedding("fc.weight")
        (True, False)
    """
    *owners, last = name.lower().split(".")
    if owners[-1:] == ["shared"] and len(owners) <= 2:  # the one table of T5 and BART
        return True
    if (owners[-1] if last == "weight" and owners else last) == "e":
        return True
    owner = (owners or [last])[-1]
    return owner in EMBEDDING_NAMES or any(word in owner for word in EMBEDDING_WORDS)


@dataclass
class _Module:
    """One module of the tree that dotted names draw."""

    path: str = ""
    int8_inputs: bool = False
    in_out: bool = False
    params: dict[str, Param] = field(default_factory=dict)
    children: dict[str, _Module] = field(default_factory=dict)


def mirror(
    tensors: Sequence[Slot],
    root: str = "Model",
    int8_inputs: Collection[str] = (),
    in_out: Collection[str] = (),
) -> Program:
    """Make the program of a state dict.

    Args:
        tensors: what is stored, with names before packing, e.g. ``fc.weight``.
        root: name of the root LayerDef.
        int8_inputs: weights of linear layers that round their inputs to int8. Where such a
            weight is not ternary, the computation of its layer is unspecified.
        in_out: weights of linear layers whose rows are the inputs.

    Raises:
        LayerDefError: a part of a name is not an identifier, or a name has too many parts.
    """
    top = _Module()
    for slot in tensors:
        *parts, last = slot.name.split(".")
        if len(parts) >= MAX_DEPTH:
            raise LayerDefError(f"is nested deeper than {MAX_DEPTH}.", node=f"{slot.name!r:.200}")
        module = top
        for part in parts:
            path = f"{module.path}.{part}" if module.path else part
            module = module.children.setdefault(part, _Module(path))
        check_identifier(last, repr(slot.name))
        module.params[last] = replace(slot.param, name=last)
        module.int8_inputs |= slot.name in int8_inputs
        module.in_out |= slot.name in in_out
    namer = _Namer()
    name = namer.layer(top, root)
    return Program(list(namer.layers.values()), name)


class _Namer:
    """Turns modules into LayerDefs, one for each structure, children first."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerDef] = {}
        self.known: dict[tuple[tuple[Param, ...], tuple[Statement, ...]], str] = {}
        self.numbers: dict[str, int] = {}  # the last one after each wish

    def layer(self, module: _Module, wish: str) -> str:
        """Return the name of a module's LayerDef; make it if its structure is new."""
        params = [*module.params.values(), *self.children(module)]
        body = _leaf_body(module)
        if body and not isinstance(body[0], Unspecified):
            params.append(Param("ids" if is_embedding_leaf(module) else "x", "Tensor"))
        key = (tuple(params), body)
        if key not in self.known:
            number = self.numbers.get(wish, 1)
            name = wish if number == 1 else f"{wish}{number}"
            while name in self.layers or not is_identifier(name) or hasattr(builtins, name):
                number += 1
                name = f"{wish}{number}"
            self.numbers[wish] = number
            self.known[key] = name
            self.layers[name] = LayerDef(name, params, body)
        return self.known[key]

    def children(self, module: _Module) -> list[Param]:
        return [self.child(name, below) for name, below in module.children.items()]

    def child(self, name: str, module: _Module) -> Param:
        if not is_position(name):
            check_attribute(name, repr(module.path))
        if builtin := _builtin(module):
            layer, args = builtin
            return Param(name, "Layer", layer=layer, args=args)
        if not module.params and list(module.children) == [
            str(i) for i in range(len(module.children))
        ]:
            items = [self.child(key, below) for key, below in module.children.items()]
            if (whole := repeated(name, items)) is not None:
                return whole
        return Param(name, "Layer", layer=self.layer(module, class_name(module.path)))


def class_name(path: str) -> str:
    """Make a class name from the path of a module: ``layers.0.self_attn`` → ``SelfAttn``.

    Example:
        >>> class_name("encoder.layers.11"), class_name("model.mlp")
        ('Layer', 'Mlp')
    """
    parts = path.split(".")
    names = [part for part in parts if not is_position(part)]
    name = names[-1] if names else "Layer"
    if is_position(parts[-1]) and name.endswith("s") and len(name) > 3:
        name = name.removesuffix("s")
    camel = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    return camel if camel and not camel[0].isdigit() else f"Layer{camel}"


def _is_linear_leaf(module: _Module) -> bool:
    weight, bias = module.params.get("weight"), module.params.get("bias")
    if module.children or weight is None or not set(module.params) <= {"weight", "bias"}:
        return False
    if weight.param_type == "Buffer" or len(weight.shape or ()) != 2 or 0 in (weight.shape or ()):
        return False
    outputs = (weight.shape or ())[1:] if module.in_out else (weight.shape or ())[:1]
    return bias is None or bias.shape == outputs


def is_embedding_leaf(module: _Module) -> bool:
    """Return whether a module is an embedding: a matrix alone, with the name of one."""
    return (
        _is_linear_leaf(module)
        and not module.int8_inputs
        and not module.in_out
        and "bias" not in module.params
        and is_embedding(f"{module.path}.weight")
    )


def _builtin(module: _Module) -> tuple[str, dict[str, object]] | None:
    """Return the built-in layer that a leaf is, with its arguments; None if it is none."""
    if not _is_linear_leaf(module) or module.in_out:
        return None
    weight, bias = module.params["weight"], module.params.get("bias")
    if module.int8_inputs and weight.param_type != "TernaryTensor":
        return None  # no built-in layer rounds the input of a float weight
    first, second = weight.shape or ()
    args: dict[str, object] = {}
    if weight.param_type == "TernaryTensor":
        if bias is not None and bias.dtype != weight.dtype:
            args["scale_dtype"] = weight.dtype
        for name in ("scale", "layout"):
            if getattr(weight, name) != getattr(Param("", ""), name):
                args[name] = getattr(weight, name)
    elif bias is not None and bias.dtype != weight.dtype:
        return None  # torch's own layers have one dtype
    dtype = (bias or weight).dtype
    if dtype != "float32":
        args["dtype"] = dtype
    prefix = "Ternary" if weight.param_type == "TernaryTensor" else ""
    if is_embedding_leaf(module):
        return f"{prefix}Embedding", {"num_embeddings": first, "embedding_dim": second, **args}
    if bias is None:
        args["bias"] = False
    linear = "BitLinear" if module.int8_inputs else f"{prefix}Linear"
    return linear, {"in_features": second, "out_features": first, **args}


def _leaf_body(module: _Module) -> tuple[Statement, ...]:
    """Return the body of a LayerDef: known only if the module is a linear layer or an embedding."""
    if not _is_linear_leaf(module):
        return (Unspecified(),)
    if module.int8_inputs and module.params["weight"].param_type != "TernaryTensor":
        return (Unspecified(),)
    if module.in_out:
        product = FunctionCall("matmul", (Identifier("x"), Identifier("weight")))
        plain = "bias" not in module.params
        return (Return(product if plain else BinaryOp("+", product, Identifier("bias"))),)
    if is_embedding_leaf(module):
        return (Return(FunctionCall("embedding", (Identifier("ids"), Identifier("weight")))),)
    names = [name for name in ("x", "weight", "bias") if name == "x" or name in module.params]
    linear = "bit_linear" if module.int8_inputs else "linear"
    return (Return(FunctionCall(linear, [Identifier(name) for name in names])),)
