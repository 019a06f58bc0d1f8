"""Weights that another system has packed, recognised by names and dtypes without a config.

Taken as plain tensors, their codes would be kept as integers, and their scales quantized as if
they were weights: a checkpoint that is of no use, without an error. The rule: integers in two dims
beside what looks like their scales, zero points, tables or shapes are codes, and all of these
belong together. ``LAYOUTS`` has the names of the systems that are known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tpack.errors import NotTernaryError
from tpack.grouping import groups, label
from tpack.sources.packed_systems import LAYOUTS, Layout
from tpack.sources.source import PackedTensor, SourceTensor
from tpack.text import listed
from tpack.wording import spell

Tensors = Mapping[str, SourceTensor | PackedTensor]

UNKNOWN = "a system that tpack does not know"
_UNKNOWN = Layout(UNKNOWN, "", (), ())


def _split(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words of which one in a name makes it a companion of codes, and is proof enough.
_STRONG = _split(
    "scale scales wscale wscales wtscale wcscale wcscales qscales scb absmax amax divisor divisors "
    "zero zeros qzeros wzeros szeros zp zps wzp zeropoint zeropoints shift shifts smooth "
    "codebook codebooks centroid centroids lut luts su sv suh svh"
)
#: Likewise, where the codes are not of 64 bits, in which indices of other kinds come.
_WEAK = _split("shape metadata idx index indices perm invperm map table tables lookup")
_INDICES = _split("idx index indices lookup map")
#: Further words that the names of companions may have.
_OTHERS = _split(
    "weight weights w q k v g s b in input out output channel channels group groups block blocks "
    "quant quantized nested global double super sub per tensor token pre orig original factor "
    "factors inv inverse reciprocal max min id point points meta mean res data size dim value "
    "values"
)
#: Words in names of integers that are not codes: buffers of ordinary models.
_BUFFERS = _split(
    "mask masks position positions pos relative ids token tokens count counts num step steps "
    "tracked length lengths label labels rng seed bucket buckets offset offsets anchor anchors "
    "coord coords grid edge edges adjacency enabled bias"
)
#: What the name of codes adds to the name of the weight.
_CODE_ENDINGS = re.compile(
    r"_(packed|q|qdata|blocks|data|codes|quantized|quant|int|int8|int4|idxs?)$"
)
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
#: Parts of a name, the last ones, among which the words of companions begin.
_LONGEST = 16
#: Codes in one dim are distinguished from buffers by how many they are.
_MANY = 64


@dataclass(frozen=True)
class PackedGroup:
    """A weight of another system.

    Attributes:
        system: the system that packed it.
        codes: the name of its codes.
        parts: the names of its tensors, the codes first.
        reason: completes "tensor X …".
        advice: what to do.
    """

    system: str
    codes: str
    parts: tuple[str, ...]
    reason: str
    advice: str


def packed_groups(tensors: Tensors) -> list[PackedGroup]:
    """Find the weights of a source that another system has packed, in the order of their codes.

    Args:
        tensors: of the whole source, after a dialect took its own.
    """
    plain = {name: t for name, t in tensors.items() if isinstance(t, SourceTensor)}
    found: dict[str, PackedGroup] = {}
    taken: set[str] = set()
    companions = _Companions(tensors, taken)
    for find in (_told, lambda tensor, _: _named(tensor, tensors), _unknown, _indices):
        for name, tensor in plain.items():
            if name in taken:
                continue
            told = find(tensor, companions)
            if told is None:
                continue
            layout, proofs = told
            parts = [n for n in dict.fromkeys((*proofs, *companions.of(name))) if n in plain]
            parts = [n for n in parts if n not in found]
            found[name] = _group(tensor, layout, next(iter((*proofs, *parts)), ""), parts)
            taken |= {name, *parts}
    return [found[name] for name in tensors if name in found]


def _group(codes: SourceTensor, layout: Layout, first: str, parts: Sequence[str]) -> PackedGroup:
    beside = f" beside {first!r}" if first else ""
    reason = f"looks packed by {layout.system}: {codes.dtype}{beside}"
    advice = layout.advice
    if codes.coded:
        reason = f"is packed by {layout.system}: {codes.coded}"
        advice = Layout.advice
    spelled = advice if isinstance(advice, str) else advice()
    return PackedGroup(layout.system, codes.name, (codes.name, *parts), reason, spelled)


def told(found: Sequence[PackedGroup]) -> Iterator[str]:
    """Yield a warning for each system whose weights are kept as they are."""
    for system in dict.fromkeys(group.system for group in found):
        own = [group for group in found if group.system == system]
        names = [label(names) for names in groups((group.codes, None) for group in own)]
        what = "weight is" if len(own) == 1 else "weights are"
        yield (
            f"{len(own)} {what} packed by {system}, and kept bit for bit with what belongs to "
            f"{'it' if len(own) == 1 else 'them'}: {listed(names)}. tpack does not "
            f"unpack {'it' if len(own) == 1 else 'them'}: {own[0].codes} {own[0].reason}."
        )


def refuse_packed(found: Sequence[PackedGroup]) -> None:
    """Refuse weights that another system has packed.

    Raises:
        NotTernaryError: there are any; it names the first one, its system, and what to do.
    """
    if not found:
        return
    first = found[0]
    others = f" ({len(found) - 1} others are not ternary either)" if len(found) > 1 else ""
    endings = dict.fromkeys(f"*{group.codes.rpartition('.')[2]}" for group in found)
    patterns = [first.codes] if len(found) == 1 else endings
    raise NotTernaryError(
        f"{first.reason}, expected floats or ternary weights{others}. {first.advice} To keep "
        f"{'it as it is' if len(found) == 1 else 'them as they are'} beside other weights, use "
        f"{spell(exclude=[*patterns])}.",
        tensor=first.codes,
    )


class _Companions:
    """The tensors that belong to codes, found without a look at every other tensor."""

    def __init__(self, tensors: Tensors, taken: set[str]) -> None:
        self.taken = taken
        self.places = {name: place for place, name in enumerate(tensors)}
        self.inside: dict[str, list[str]] = {}
        #: By module, and by what stands in a name before the words of companions.
        self.beside: dict[tuple[str, str], list[str]] = {}
        for name in tensors:
            module, _, own = name.rpartition(".")
            self.inside.setdefault(module, []).append(name)
            ends = [0, *(found.end() for found in re.finditer("_", own))]
            for end in {0, *ends[-_LONGEST:]}:
                if _is_companion(own[end:]):
                    self.beside.setdefault((module, own[:end]), []).append(name)

    def of(self, codes: str) -> list[str]:
        """Return what no codes have taken: beneath their name, or beside them by name."""
        module, _, last = codes.rpartition(".")
        stems = [f"{stem}_" for stem in (last, _CODE_ENDINGS.sub("", last)) if stem]
        beside = set()
        for stem in ("", *stems):
            names = self.beside.get((module, stem), [])
            names[:] = [name for name in names if name not in self.taken]
            beside |= {name for name in names if stem == _first_of(stems, name)}
        inside = [name for name in self.inside.get(codes, ()) if name not in self.taken]
        return [*inside, *sorted(beside - {codes}, key=self.places.__getitem__)]


def _first_of(stems: Sequence[str], name: str) -> str:
    own = name.rpartition(".")[2]
    return next((stem for stem in stems if own.startswith(stem)), "")


#: The layout of codes, and the names of the tensors beside them, the best proof first.
_Found = tuple[Layout, Sequence[str]] | None


def _told(tensor: SourceTensor, _: _Companions) -> _Found:
    """Return what the source itself says of codes."""
    if not tensor.system:
        return None
    return Layout(tensor.system, "", (tensor.dtype,), tensor.beside), tensor.beside


def _named(tensor: SourceTensor, tensors: Tensors) -> _Found:
    """Find the first layout whose codes a tensor may be."""
    rooted = f".{tensor.name}"
    for layout in LAYOUTS:
        if tensor.dtype not in layout.dtypes or not rooted.endswith(layout.codes):
            continue
        prefix = rooted.removesuffix(layout.codes)
        beside = [f"{prefix}{last}"[1:] for last in layout.beside]
        beside = [n for n in beside if n in tensors and n != tensor.name]
        enough = beside or not layout.beside
        if enough and (not layout.of or tensors[beside[0]].dtype in layout.of):
            return layout, beside
    return None


def _unknown(tensor: SourceTensor, companions: _Companions) -> _Found:
    """Recognise codes of an unknown layout by the tensors that lie beside them."""
    own = tensor.name.rpartition(".")[2]
    integers = tensor.dtype in _INTEGERS or tensor.dtype.startswith("float8")
    many = tensor.numel > 1 if len(tensor.shape) >= 2 else tensor.numel >= _MANY
    if not integers or not many or _is_companion(own) or _BUFFERS.intersection(words(own)):
        return None
    flat = len(tensor.shape) < 2 or tensor.dtype.endswith("int64")
    proofs = [n for n in companions.of(tensor.name) if not flat or _is_strong(n)]
    return (_UNKNOWN, proofs) if proofs else None


def _indices(tensor: SourceTensor, companions: _Companions) -> _Found:
    """Recognise codes that are named indices by the table that lies beside them."""
    found = set(words(tensor.name.rpartition(".")[2]))
    if tensor.dtype not in _INTEGERS or len(tensor.shape) < 2 or not found & _INDICES:
        return None
    if found & (_BUFFERS | _STRONG):
        return None
    proofs = [n for n in companions.of(tensor.name) if _is_strong(n)]
    return (_UNKNOWN, proofs) if proofs else None


def words(name: str) -> list[str]:
    """Split a name into its words, in lower case.

    Example:
        >>> words("weight_scale_inv"), words("g_idx2")
        (['weight', 'scale', 'inv'], ['g', 'idx'])
    """
    return re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())


def _is_companion(name: str) -> bool:
    found = set(words(name))
    return bool(found & (_STRONG | _WEAK)) and found <= _STRONG | _WEAK | _OTHERS


def _is_strong(companion: str) -> bool:
    return bool(_STRONG.intersection(words(companion.rpartition(".")[2])))
