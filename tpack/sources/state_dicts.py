"""A dict of tensors as a source: of those of torch in memory, or of those in its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tpack.errors import InputError, unknown
from tpack.options import Reading
from tpack.sources.names import Naming
from tpack.sources.source import Source, SourceTensor
from tpack.text import listed

#: What the names of training, and not of a model, begin with.
_OF_TRAINERS = ("optimizer", "scheduler", "lr_scheduler", "rng_state", "scaler")
#: Where trainers put the state dict, tried in this order.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

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
        is_one: whether a value is a tensor.
        identity: a key that views of the same elements share; None for a tensor without elements.
        read: the tensor of a source, by its name in the source; raises what cannot be stored.
        role: what is known of a tensor by its module: see ``Source.roles``.
        trained: whether it is a parameter of its module; None if that is not recorded.
        called: what the class of a value that is no tensor is called.
    """

    is_one: Callable[[Any], bool]
    identity: Callable[[Any], object]
    read: Callable[[str, Any], SourceTensor]
    role: Callable[[str, Any], str | None] = lambda *_: None
    trained: Callable[[str, Any], bool | None] = lambda *_: None
    called: Callable[[Any], str] = lambda value: type(value).__name__


def collect(data: object, label: str, kind: Tensors, naming: Naming, reading: Reading) -> Source:
    """Take the tensors of a state dict, or of what wraps one.

    Args:
        data: dicts and lists, with tensors in them.
        label: what to call the source.
        naming: what to call the tensors.
        reading: its key says which nested dict to take.

    Raises:
        InputError: no tensors in it, or not under names.
        UnsupportedError: tensors of a kind that cannot be stored.
    """
    notes: list[str] = []
    if not isinstance(data, Mapping):
        raise InputError(
            f"holds {type(data).__name__}, expected a state dict. Save model.state_dict()."
        )
    if reading.key is not None:
        data = _at(data, reading.key, notes)
    data = _unwrap(data, kind, notes)
    tensors: dict[str, Any] = {}
    lost: list[str] = []
    for name, value in data.items():
        if kind.is_one(value):
            if not isinstance(name, str):
                raise InputError(f"has a tensor under the key {name!r:.60}, expected a name.")
            tensors[name] = value
        else:
            notes.append(f"left out {str(name)!r}: {kind.called(value)}, not a tensor")
            if not str(name).startswith(_OF_TRAINERS) and _holds_tensors(value, kind):
                lost.append(str(name))
    if not tensors and lost:
        raise InputError(
            f"holds tensors only inside of {', '.join(map(repr, lost[:8]))}, expected a state "
            f"dict. Save the one that you want: torch.save(contents[{lost[0]!r}], 'model.pt')."
        )
    if not tensors:
        raise InputError("holds no tensors, expected a state dict.")
    names, stripped = naming(tensors)
    found: dict[str, SourceTensor] = {}
    aliases: dict[str, str] = {}
    roles: dict[str, str] = {}
    trained: dict[str, bool] = {}
    owners: dict[object, str] = {}
    for stored, tensor in tensors.items():
        name, key = names[stored], kind.identity(tensor)
        if (role := kind.role(stored, tensor)) is not None:
            roles[name] = role
        if (parameter := kind.trained(stored, tensor)) is not None:
            trained[name] = parameter
        if key is not None and owners.setdefault(key, name) != name:
            aliases[name] = owners[key]
            continue
        found[name] = kind.read(name, tensor)
    notes += [
        f"{name} is quantized by torch: taken as float32" for name, t in found.items() if t.coded
    ]
    notes += stripped + [f"{alias} shares the storage of {name}" for alias, name in aliases.items()]
    return Source(
        label,
        found,
        aliases=aliases,
        notes=notes,
        warnings=_warning(lost),
        roles=roles,
        trained=trained,
        nbytes=sum(tensor.nbytes for tensor in found.values()),
    )


def _unwrap(data: Mapping[Any, Any], kind: Tensors, notes: list[str]) -> Mapping[Any, Any]:
    """Go down to the state dict inside what a trainer saved."""
    bare = not any(map(kind.is_one, data.values()))
    for key in WRAPPERS:
        inner = data.get(key)
        if isinstance(inner, Mapping) and inner and (bare or any(map(kind.is_one, inner.values()))):
            others = ", ".join(sorted(str(other) for other in data if other != key))
            notes.append(f"took the state dict under {key!r}" + (f", left {others}" * bool(others)))
            return _unwrap(inner, kind, notes)
    return data


def _at(data: Mapping[Any, Any], key: str, notes: list[str]) -> Mapping[Any, Any]:
    """Return the dict that a dotted key names.

    Raises:
        InputError: there is none.
    """
    for part in key.split("."):
        inner = data.get(part)
        if not isinstance(inner, Mapping):
            known = [str(name) for name, value in data.items() if isinstance(value, Mapping)]
            raise unknown("key", key, known or ["none"])
        data = inner
    notes.append(f"took the state dict under {key!r}")
    return data


def _holds_tensors(value: object, kind: Tensors) -> bool:
    """Return whether a value holds tensors, at any depth."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(kind.is_one(item) or _holds_tensors(item, kind) for item in value)
    return False


def _warning(lost: list[str]) -> list[str]:
    """Return a warning about values that hold tensors, but are not tensors themselves."""
    if not lost:
        return []
    return [
        f"left out {listed(lost)}, which "
        f"{'holds' if len(lost) == 1 else 'hold'} tensors in a tuple or dict, as "
        "torch.ao.quantization, HQQ and SINQ save packed weights: they are not in the output."
    ]
