"""ONNX files as a source of tensors: initializers, and weights that nodes make of codes.

Nothing of the graph is run. A weight keeps the orientation that it is stored in.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tpack.container.header import check_name
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, UnsupportedError, locate
from tpack.options import Reading
from tpack.sources.carried import carried
from tpack.sources.onnx_files.constants import numbers_in
from tpack.sources.onnx_files.identifiers import as_paths
from tpack.sources.onnx_files.model import OnnxModel, load_model
from tpack.sources.onnx_files.names import torch_names
from tpack.sources.onnx_files.nodes import Node, Nodes
from tpack.sources.onnx_files.quantized import QUANTIZED, Graph, read_as
from tpack.sources.onnx_files.tensors import read_tensor, type_name
from tpack.sources.onnx_files.uses import Used, Uses
from tpack.sources.source import PackedTensor, Source, SourceTensor
from tpack.text import listed, plural

#: What quantizers add to the name of a weight.
_ADDED = re.compile(r"(_quantized|_quant|_packed|_(DQ_)?Q[248](G\d+)?)$")


def open_onnx(path: Path, reading: Reading) -> Source:
    """Open an ONNX model.

    Args:
        path: of the file; external data is read from its folder, and from nowhere else.
        reading: not used: a model has one graph.

    Raises:
        InputError: malformed, truncated or hostile; external data that is missing.
    """
    del reading
    with ExitStack() as resources:
        model = load_model(path)
        resources.callback(model.close)
        opened = OnnxGraph(model)
        metadata = {entry.key: entry.value for entry in model.proto.metadata_props}
        output = carried(metadata, opened.found)
        source = opened.source() if output is None else opened.as_stored()
        source.carried = output
        source.path = path
        source.resources = resources.pop_all()
        return source


class OnnxGraph:
    """One reading of a model.

    Attributes:
        found: every stored tensor that safetensors can hold, by its name in the graph.
        tensors: what the source has, by name.
        taken: names in the graph of codes, scales and zero points that a weight was made of.
        named: what the source calls a tensor, by its name in the graph.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.nodes = Nodes.of(model.proto)
        self.named, self.notes = torch_names(model.graph)
        own = [self.named.get(name, name) for name, _ in self.nodes.of_all()]
        paths = as_paths(own)
        for (name, _), path in zip(self.nodes.of_all(), own, strict=True):
            self.named[name] = paths.get(path, path)
        self.warnings: list[str] = []
        self.found: dict[str, SourceTensor] = {}
        self._read_all()
        self.uses = Uses(self.nodes, lambda name: self.found[name].shape)
        self.weights: dict[str, SourceTensor | PackedTensor] = {}
        self.left: dict[str, SourceTensor] = {}
        self.names: dict[str, str] = {}
        self.taken: set[str] = set()
        self.turned: set[str] = set()
        self.systems: Counter[str] = Counter()
        self.floats: dict[str, str] = {}

    def _read_all(self) -> None:
        unheld: dict[str, str] = {}
        for name, proto in self.nodes.of_all():
            with locate(tensor=name[:200]):
                try:
                    self.found[name] = read_tensor(self.model, proto, name)
                except UnsupportedError:
                    unheld[name] = type_name(proto.data_type)
        if unheld:
            self.warnings.append(
                f"left out {listed(list(unheld))} of type {listed(sorted(set(unheld.values())))}: "
                "no safetensors file can hold them"
            )
        if self.nodes.sparse:
            self.warnings.append(
                f"left out {listed(self.nodes.sparse)}: sparse initializers are not read. Export "
                "the model with dense ones."
            )

    def source(self) -> Source:
        """Return what was found as a source."""
        self._read_quantized()
        self.notes += [f"read {plural(n, 'weight')} of {name}" for name, n in self.systems.items()]
        tensors: dict[str, SourceTensor | PackedTensor] = {}
        roles: dict[str, str] = {}
        in_out: set[str] = set()
        numbers = numbers_in(self.nodes, self.found)
        for name, tensor in self.found.items():
            if name not in self.weights and (name in self.taken or name in numbers):
                continue
            used = self.uses.of(name)
            if name in self.nodes.constants and not _is_weight(tensor, used):
                continue
            stored = self.weights.get(name) or self.left.get(name) or tensor
            if name not in self.weights:
                stored = replace(stored, name=self.named.get(name, name))
            self._add(tensors, stored, name)
            self.names[name] = stored.name
            if used.role:
                roles[stored.name] = used.role
            if used.in_out != (name in self.turned) and len(stored.shape) == 2:
                in_out.add(stored.name)
            self._say_changed(stored, name, used)
        return Source(
            str(self.model.path),
            tensors,
            notes=self.notes,
            warnings=self.warnings,
            roles=roles,
            floats=self.floats,
            in_out=frozenset(in_out),
            graph=self if self.model.graph.node else None,
            files=tuple(self.model.files),
            nbytes=sum(path.stat().st_size for path in self.model.files),
        )

    def as_stored(self) -> Source:
        """Return what is stored as a source, whatever its nodes make of it."""
        size = sum(path.stat().st_size for path in self.model.files)
        files = tuple(self.model.files)
        return Source(str(self.model.path), self.found, files=files, nbytes=size)

    @property
    def opset(self) -> int:
        """The version of ONNX's own ops."""
        versions = [one.version for one in self.model.proto.opset_import if not one.domain]
        return max(versions, default=1)

    @property
    def stored(self) -> Graph:
        """The nodes, with the tensors that they store."""
        return Graph(self.nodes, self.found)

    def array(self, name: str) -> npt.NDArray[Any]:
        """Read a stored tensor, by its name in the graph."""
        tensor = self.found[name]
        values = tensor.read(0, tensor.numel).reshape(tensor.shape)
        return values.astype(bool) if tensor.dtype == "bool" else values

    def _add(
        self,
        tensors: dict[str, SourceTensor | PackedTensor],
        tensor: SourceTensor | PackedTensor,
        name: str,
    ) -> None:
        check_name(tensor.name)
        if tensor.name in tensors:
            raise InputError(
                f"would have the name {tensor.name!r}, which another tensor has. Rename one.",
                tensor=name,
            )
        tensors[tensor.name] = tensor

    def _say_changed(self, tensor: SourceTensor | PackedTensor, name: str, used: Used) -> None:
        if (
            used.changed
            and name not in self.weights
            and used.role in ("linear", "conv", "embedding", "output head")
        ):
            self.warnings.append(
                f"{tensor.name} is changed by the graph before it is used "
                f"({', '.join(used.changed[:6])}): the values that are stored were taken"
            )

    # ---- weights of codes and scales

    def _read_quantized(self) -> None:
        """Read the weights that nodes make of codes; leave those that are not ternary."""
        done: dict[str, Node] = {}
        parts: dict[str, tuple[str, ...]] = {}
        for node in self.nodes.nodes:
            if (found := read_as(node, self.stored)) is None:
                continue
            name = found[1]
            if name not in self.found or (name in done and _same(done[name], node)):
                continue
            with locate(tensor=name[:200]):
                if name in done:
                    raise UnsupportedError(
                        f"is used by {node.op} in two ways. Export the model without sharing it."
                    )
                done[name] = node
                parts[name] = self._read_weight(node, name)
        kept = {part for name, used in parts.items() if name in self.left for part in used}
        for name in self.weights:
            self.taken.update(part for part in parts[name] if part not in kept)

    def _read_weight(self, node: Node, name: str) -> tuple[str, ...]:
        """Read the codes of a node; return their name and the names of what belongs to them."""
        row = QUANTIZED[node.op]
        try:
            levels = row.read(node, self.stored, self._weight_name(name))
            self.weights[name] = levels.tensor() if len(levels.shape) > 1 else levels.dense()
        except UnsupportedError as error:
            if row.of_floats:
                self.warnings.append(
                    f"{name}: {error.message}: the values that are stored were taken"
                )
                self.floats[self.named.get(name, name)] = f"rounded by {node.op}"
                return (name,)
            parts = tuple(one for one in node.inputs if one in self.found)
            beside = tuple(self.named.get(one, one) for one in parts if one != name)
            self.left[name] = replace(
                self.found[name], coded=error.message, system=row.system, beside=beside
            )
            return parts
        self.systems[row.system] += 1
        if levels.lie.turned:
            self.turned.add(name)
            self.notes.append(
                f"{levels.name} is stored as its transpose, {levels.shape}: its scales lie along "
                "the inputs"
            )
        return levels.parts

    def _weight_name(self, codes: str) -> str:
        """Return the name of the weight, without what quantizers add to it, if that is free."""
        name = self.named.get(codes, codes)
        plain = _ADDED.sub("", name)
        free = plain not in self.found and plain not in self.named.values()
        return plain if plain and free else name


def _same(one: Node, other: Node) -> bool:
    """Return whether two nodes make the same weight; ones that multiply may differ in the rest."""
    row = QUANTIZED[one.op]
    if one.op != other.op:
        return False
    if row.codes == 0 and "Gather" not in one.op:
        return one.inputs == other.inputs and one.proto.attribute == other.proto.attribute
    return one.inputs[row.codes :] == other.inputs[row.codes :]


def _is_weight(tensor: SourceTensor, used: Used) -> bool:
    """Return whether a constant of the graph is a tensor of the model, not a number of an op."""
    floats = BY_NAME[tensor.dtype].is_float and tensor.numel > 1
    return floats or (used.role not in ("", "other") and len(tensor.shape) > 1)
