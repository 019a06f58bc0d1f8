"""A dict of tensors as a source: of those of torch in memory, or of those in its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tpack.options import Reading
from tpack.sources.names import Naming
from tpack.sources.nesting import choose
from tpack.sources.source import PackedTensor, Source, SourceTensor
from tpack.sources.tree import Called, Measure, Opened

#: What torch's modules do with their parameters, by how the class is called.
KINDS = (
    ("embedding", ("Embedding", "EmbeddingBag")),
    ("norm", ("LayerNorm", "RMSNorm", "GroupNorm")),
    ("norm", tuple(f"{kind}Norm{n}d" for kind in ("Batch", "Instance") for n in (1, 2, 3))),
    ("layer", ("Linear", "Bilinear", "MultiheadAttention", "RNNBase", "RNNCellBase")),
    ("layer", tuple(f"Conv{kind}{n}d" for kind in ("", "Transpose") for n in (1, 2, 3))),
)


@dataclass(frozen=True)
class Tensors:
    """What a source asks about the tensors of one maker.

    Attributes:
        measure: returns the shape of a tensor, and its bytes; None for any other value.
        identity: a key that views of the same elements share; None for a tensor without elements.
        read: the tensor of a source, by its name in the source; raises what cannot be stored.
        role: what is known of a tensor by its module: see ``Source.roles``.
        trained: whether it is a parameter of its module; None if that is not recorded.
        opened: returns the dict or list that an object stands for; any other value as it is.
        called: what the class of a value that is no tensor is called.
    """

    measure: Measure
    identity: Callable[[Any], object]
    read: Callable[[str, Any], SourceTensor | PackedTensor]
    role: Callable[[str, Any], str | None] = lambda *_: None
    trained: Callable[[str, Any], bool | None] = lambda *_: None
    opened: Opened = lambda value: value
    called: Called = lambda value: type(value).__name__


def collect(
    data: object,
    label: str,
    kind: Tensors,
    naming: Naming,
    reading: Reading,
    file_bytes: int = 0,
) -> Source:
    """Take the tensors of a state dict, or of what wraps one.

    Args:
        data: dicts and lists, with tensors in them.
        label: what to call the source.
        naming: what to call the tensors.
        reading: its key says which nested dict to take.
        file_bytes: size of the file that holds them, if one does. It is the size of the source
            unless the file holds more: dropped states of an optimizer are no compression.

    Raises:
        InputError: no tensors in it, or not under names; several dicts that may be the model.
        UsageError: the key leads to no dict with tensors.
        UnsupportedError: tensors of a kind that cannot be stored.
    """
    chosen = choose(data, kind.measure, reading.key, kind.opened, kind.called)
    tensors, notes = chosen.tensors, chosen.notes
    names, stripped = naming(tensors)
    found: dict[str, SourceTensor | PackedTensor] = {}
    aliases: dict[str, str] = {}
    roles: dict[str, str] = {}
    trained: dict[str, bool] = {}
    owners: dict[object, str] = {}
    for stored, name in names.items():
        tensor = tensors[stored]
        key = kind.identity(tensor)
        if (role := kind.role(stored, tensor)) is not None:
            roles[name] = role
        if (parameter := kind.trained(stored, tensor)) is not None:
            trained[name] = parameter
        if key is not None and owners.setdefault(key, name) != name:
            aliases[name] = owners[key]
            continue
        found[name] = kind.read(name, tensor)
    notes += [
        f"{name} is quantized by torch: taken as float32"
        for name, t in found.items()
        if isinstance(t, SourceTensor) and t.coded
    ]
    notes += stripped + [f"{alias} shares the storage of {name}" for alias, name in aliases.items()]
    nbytes = sum(tensor.nbytes for tensor in found.values())
    return Source(
        label,
        found,
        aliases=aliases,
        notes=notes,
        warnings=chosen.warnings,
        roles=roles,
        trained=trained,
        nbytes=(chosen.is_all and file_bytes) or nbytes,
    )
