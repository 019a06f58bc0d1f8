"""What each stored tensor of a graph is there: the weight of which kind of layer.

A weight is followed through its forms (transposed, dequantized, cast) to the nodes that use it.
Names are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tpack.sources.onnx_files.nodes import Node, Nodes

#: Of several roles of one tensor the first counts.
ORDER = (*("embedding", "output head", "router", "depthwise", "conv", "linear", "norm", "other"),)
#: Nodes whose first input, in another form, is what they give.
FORMS = frozenset(
    {"Identity", "Cast", "CastLike", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
    | {"Slice", "Split", "Concat", "Expand", "DequantizeLinear", "Quant", "IntQuant"}
)
#: Where nodes that multiply take their weight, and whether it lies (in, out) there.
PRODUCTS: dict[str, dict[int, bool]] = {
    "MatMul": {0: False, 1: True},
    "Gemm": {0: False, 1: True},
    "FusedMatMul": {1: True},
    "FusedGemm": {1: True},
    "MatMulInteger": {0: False, 1: True},
    "MatMulIntegerToFloat": {1: True},
    "DynamicQuantizeMatMul": {1: True},
    "QLinearMatMul": {0: False, 3: True},
    "MatMulNBits": {1: False},
    "Einsum": {0: False, 1: False},
    "Attention": {1: True},
    "QAttention": {1: True},
    "LSTM": {1: False, 2: False},
    "GRU": {1: False, 2: False},
    "RNN": {1: False, 2: False},
}
CONVOLUTIONS = {
    "Conv": 1, "FusedConv": 1, "NhwcConv": 1, "ConvTranspose": 1, "ConvInteger": 1,
    "QLinearConv": 3,
}  # fmt: skip
LOOKUPS = {"Gather": (0,), "GatherBlockQuantized": (0,), "EmbedLayerNormalization": (2, 3, 4)}
_STANDARD = ("", "ai.onnx")
#: How many uses are looked at for one tensor, and for all of them; of others, names tell.
_FAR, _ALL = 256, 100_000


@dataclass
class Used:
    """What a tensor is used as.

    Attributes:
        role: as ``Source.roles`` has them; empty if the graph does not show it.
        node: the node that uses it so.
        in_out: whether its last axis is the outputs of a product.
        changed: ops by which the graph computes other values of it before it is used.
    """

    role: str = ""
    node: Node | None = None
    in_out: bool = False
    changed: tuple[str, ...] = ()


@dataclass
class Uses:
    """One reading of a graph."""

    graph: Nodes
    shape_of: Callable[[str], tuple[int, ...]]
    _fed: set[str] = field(default_factory=set)
    _computed: set[Node] = field(default_factory=set)
    _deep: set[str] = field(default_factory=set)
    _followed: set[str] = field(default_factory=set)
    _looked: int = 0

    def __post_init__(self) -> None:
        """Mark values that depend on inputs, that come after layers, and before which they come."""
        fed, deep = set(self.graph.inputs), self._deep
        for node in self.graph.nodes:
            if any(name in fed for name in node.inputs):
                self._computed.add(node)
                fed.update(node.outputs)
                if _is_layer(node) or any(name in deep for name in node.inputs):
                    deep.update(node.outputs)
        for node in reversed(self.graph.nodes):
            if any(out in self._followed for out in node.outputs) or _is_layer(node):
                self._followed.update(node.inputs)
        self._fed = fed
        self._routes = any(node.op == "TopK" for node in self.graph.nodes)

    def of(self, name: str) -> Used:
        """Return what a stored tensor is used as."""
        found = list(self._ends(name))
        if not found or any(not one.role for one in found):
            return Used()
        best = min(found, key=lambda one: ORDER.index(one.role))
        lies = {one.in_out for one in found if one.role == best.role}
        return Used(best.role, best.node, lies == {True}, best.changed)

    def _ends(self, name: str) -> Iterator[Used]:
        """Yield the uses of a tensor in any of its forms."""
        at: list[tuple[str, bool, tuple[str, ...]]] = [(name, False, ())]
        seen = {name}
        while at:
            value, turned, changed = at.pop()
            for node, place in self._users(value):
                role = self._role(node, place, name)
                if role == "form":
                    swaps = node.op == "Transpose" and _swaps_last(node)
                    ops = changed if node.op in FORMS else (*changed, node.op)
                    for out in node.outputs[:_FAR]:
                        if out and out not in seen and len(seen) < _FAR:
                            seen.add(out)
                            at.append((out, turned != swaps, ops))
                elif role is not None:
                    side = "transA" if place == 0 else "transB"
                    transposed = bool(node.attribute(side, 0)) != turned
                    lies = PRODUCTS.get(node.op, {}).get(place, False) != transposed
                    yield Used(role, node, lies, changed)

    def _users(self, value: str) -> Iterator[tuple[Node, int]]:
        """Yield the nodes that take a value, so far as they are looked at."""
        for count, user in enumerate(self.graph.users.get(value, ())):
            self._looked += 1
            if count >= _FAR or self._looked > _ALL:
                return
            yield user

    def _role(self, node: Node, place: int, name: str) -> str | None:
        """Return the role of an operand; ``form`` to go on, None for what says nothing."""
        shape = self.shape_of(name)
        if node.op in CONVOLUTIONS:
            return self._convolution(node, shape) if place == CONVOLUTIONS[node.op] else None
        if place in PRODUCTS.get(node.op, {}):
            return self._product(node)
        if place in LOOKUPS.get(node.op, ()):
            return "embedding" if len(shape) <= 2 else "form"
        if node.op.endswith("Normalization"):
            return "norm"
        if node.op in FORMS and (place == 0 or node.op == "Concat"):
            return "form"
        if node.op in _RECURRENT:
            return "other"
        if len(shape) < 2 or node.op in PRODUCTS or node.op in FORMS:
            return None
        if node.proto.domain not in _STANDARD or node.op in _CONTROL:
            return ""
        return "other" if node in self._computed else "form"

    def _convolution(self, node: Node, shape: tuple[int, ...]) -> str:
        kernel = list(shape[2:])
        if node.attribute("group", 1) > 1 and shape[1:2] == (1,):
            return "depthwise"
        first = not any(name in self._deep for name in node.inputs)
        patches = node.attribute("strides", [1] * len(kernel)) == kernel and max(kernel, default=1)
        return "embedding" if first and patches and patches > 1 else "conv"

    def _product(self, node: Node) -> str:
        if self._routes and any(one.op == "TopK" for one in self._after(node, stop=True)):
            return "router"
        return "output head" if self._is_head(node) else "linear"

    def _is_head(self, node: Node) -> bool:
        """Return whether a product, with layers before it and none after, is the model's answer."""
        before = any(name in self._deep for name in node.inputs)
        if not before or any(out in self._followed for out in node.outputs):
            return False
        own = {*node.outputs}
        for later in self._after(node, stop=False):
            own.update(later.outputs)
            if any(name in self._fed and name not in own for name in later.inputs):
                return False  # such as a residual connection
        return any(out in own for out in self.graph.outputs)

    def _after(self, node: Node, *, stop: bool) -> Iterator[Node]:
        """Yield nodes that use what a node makes; with ``stop``, only up to the next layers."""
        at, seen = [node], {node}
        while at and len(seen) < _FAR:
            for out in at.pop().outputs:
                for user, _ in self._users(out):
                    if user not in seen and not (stop and _is_layer(user)):
                        seen.add(user)
                        at.append(user)
                        yield user


_RECURRENT = ("LSTM", "GRU", "RNN")
_CONTROL = ("If", "Loop", "Scan")


def _is_layer(node: Node) -> bool:
    return node.op in PRODUCTS or node.op in CONVOLUTIONS or node.op == "GatherBlockQuantized"


def _swaps_last(node: Node) -> bool:
    """Return whether a Transpose swaps the last two axes; without ``perm`` it reverses all."""
    order = node.attribute("perm", [])
    return not order or order[-2:] == [len(order) - 1, len(order) - 2]
