"""The tensors of a file under the names that its layers give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tpack.container.header import check_name
from tpack.errors import InputError, locate
from tpack.sources.keras_files.hdf5 import Hdf5
from tpack.sources.keras_files.layers import QUANTIZED, Group, groups
from tpack.sources.keras_files.quantized import read_quantized
from tpack.sources.keras_files.quantizers import quantizer_of
from tpack.sources.keras_files.variables import Layer, Variable
from tpack.sources.source import PackedTensor, SourceTensor
from tpack.text import listed, plural


@dataclass
class Found:
    """What a file holds; see ``Source``.

    Attributes:
        unnamed: layers whose variables have no names in the file.
        opaque: those of them whose variables are codes.
        applied: weights that were rounded as their layers do, by the quantizer.
        quantizers: weights that were not, by the quantizer.
    """

    tensors: dict[str, SourceTensor | PackedTensor] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    applied: dict[str, list[str]] = field(default_factory=dict)
    quantizers: dict[str, list[str]] = field(default_factory=dict)

    def add(self, tensor: SourceTensor | PackedTensor, column_dims: int = 1) -> None:
        """Add a tensor, of which the trailing dims are the columns if it is a weight.

        Raises:
            InputError: another has its name.
        """
        check_name(tensor.name)
        if tensor.name in self.tensors:
            raise InputError("has the name of another one. Rename its layer.", tensor=tensor.name)
        self.tensors[tensor.name] = tensor
        if isinstance(tensor, SourceTensor) and len(tensor.shape) > 1:
            self.splits[tensor.name] = len(tensor.shape) - column_dims

    def add_variable(
        self, name: str, held: Mapping[str, SourceTensor], row: Variable, layer: Layer
    ) -> None:
        """Add a variable of a layer that is known.

        Args:
            held: the variable under ""; if Keras quantized it, also its scales.
        """
        dims = layer.column_dims(row, held[""].shape)
        quantizer = None if row.role == "bias" else quantizer_of(layer, row.name)
        if len(held) > 1:
            for tensor in read_quantized(name, held, layer, dims):
                self.add(tensor, dims)
        elif quantizer is not None and (trits := quantizer.trits(held[""])) is not None:
            self.add(replace(trits, name=name), dims)
            self.applied.setdefault(str(quantizer), []).append(name)
        else:
            self.add(replace(held[""], name=name), dims)
            if quantizer is not None:
                self.add_rounded(name, str(quantizer))
        if row.role:
            self.roles[name] = row.role

    def add_rounded(self, name: str, quantizer: str) -> None:
        """Keep a tensor as it is, for its layer rounds it by a rule that is not applied."""
        self.floats[name] = f"its layer rounds it by {quantizer}"
        self.quantizers.setdefault(quantizer, []).append(name)

    def say(self) -> None:
        """Say what was found, for the report."""
        if self.unnamed:
            self.notes.append(
                f"variables of {listed(self.unnamed)} are numbered: the file does not say what "
                "they are called"
            )
        if self.opaque:
            self.warnings.append(
                f"{plural(len(self.opaque), 'layer')} quantized by Keras kept as they are, for the "
                f"file does not say how to read them: {listed(self.opaque)}. To pack them, convert "
                "the model as it was before, or as model.save('model.keras') writes it."
            )
        for quantizer, names in self.applied.items():
            self.notes.append(
                f"rounded to -1, 0 and 1 by {quantizer}, as the layer does when it runs: "
                f"{listed(names)}"
            )
        for quantizer, names in self.quantizers.items():
            self.warnings.append(
                f"{plural(len(names), 'weight')} kept as floats, though the layer rounds them by "
                f"{quantizer} as it runs: {listed(names)}. To pack them, save the rounded weights "
                "in their place."
            )


def read_layers(tensors: Mapping[str, SourceTensor], files: Iterable[Hdf5], root: Layer) -> Found:
    """Name the variables of a file of Keras 3.

    Args:
        tensors: by their path: ``layers/dense/vars/0``.
        files: that they are in.
        root: the model.
    """
    stored: dict[str, dict[str, SourceTensor]] = {}
    for path, tensor in tensors.items():
        place, _, number = path.rpartition("/")
        stored.setdefault(place, {})[number] = tensor

    def name_of(group: str) -> str | None:
        variables = f"{group}/vars".lstrip("/")
        for file in files:
            if file.has(variables):
                return file.text(variables, "name") or ""
        return None

    found = Found()
    group_at = groups(root, name_of)
    for path, variables in stored.items():
        outer, _, last = path.rpartition("/")
        group = group_at(outer if last == "vars" else path)
        with locate(tensor=path):
            _add_group(found, group, variables)
    found.say()
    return found


def _add_group(found: Found, group: Group, variables: Mapping[str, SourceTensor]) -> None:
    order = sorted(variables, key=lambda number: (not number.isdecimal(), len(number), number))
    parts = group.layer.parts(len(order)) if all(map(str.isdecimal, order)) else None
    quantized = group.layer.mode or any(variables[n].dtype == "int8" for n in order)
    if parts is None or (group.layer.config is None and quantized):
        label = ".".join(group.parts) or "the model"
        (found.opaque if quantized else found.unnamed).append(label)
        for number in order:
            last = f"vars_{number}" if number.isdecimal() else number
            name = ".".join((*group.parts, last))
            found.add(replace(variables[number], name=name))
            if quantized:
                found.floats[name] = "quantized by Keras"
            elif (
                group.layer.kind.startswith(tuple(QUANTIZED.values()))
                and len(variables[number].shape) > 1
            ):
                found.add_rounded(name, "a quantizer that the file does not name")
        return
    stored: dict[Variable, dict[str, SourceTensor]] = {}
    for number, (row, what) in zip(order, parts, strict=True):
        stored.setdefault(row, {})[what] = variables[number]
    for row, held in stored.items():
        found.add_variable(".".join((*group.parts, row.name)), held, row, group.layer)


def read_paths(file: Hdf5) -> Found:
    """Name the arrays of any HDF5 file by their paths."""
    found = Found()
    for path, tensor in file.datasets.items():
        found.add(replace(tensor, name=path.replace("/", ".")))
    if any("/" in path for path in file.datasets):
        found.notes.append("wrote '/' in names as '.'")
    return found
