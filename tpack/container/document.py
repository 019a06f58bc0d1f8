"""The description under the key ``tpack`` of a file: its LayerDefs, entries and digests."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tpack.choices import QUANTIZERS, FormatRow
from tpack.codec import GRANULARITIES, LAYOUTS, Scale, rows_and_columns
from tpack.container.header import Entry
from tpack.container.strictjson import canonical_json, parse_json
from tpack.container.version import Version, read_as
from tpack.dtypes import SCALE_DTYPES, WEIGHT_DTYPES
from tpack.errors import FormatError, LayerDefError, UsageError
from tpack.layerdef import Program, slots, validate
from tpack.layerdef.params import MAX_RANK
from tpack.layerdef.rows import rows_of, rows_of_weight
from tpack.layerdef.serialization import MAX_DEPTH
from tpack.wording import either

#: The deepest LayerDefs: each level of a tree is an object and a list, inside of six more.
MAX_NESTING = 2 * MAX_DEPTH + 6
#: Placeholder of a digest that is not known yet; as long as a real one.
NO_DIGEST = "0" * 64

_HEX, _DIGEST = re.compile(r"[0-9a-f]{64}"), "64 digits of lowercase hex"
_MISSING = "is missing in the file, but described. The file is damaged: convert it again."
#: The method of a weight that was saved from a module, whose float original is not known.
UNKNOWN = "unknown"


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of some bytes, one after the other, in hex."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()


@dataclass(frozen=True)
class TernaryEntry:
    """How one ternary parameter is stored.

    Attributes:
        shape: logical shape.
        split: number of leading dims that index rows.
        layout: layout of the packed bytes.
        scale: granularity, as text.
        method: how the trits were found: ``exact``, a quantizer, or ``unknown`` for a weight that
            was saved from a module, for example after training.
        source_dtype: dtype of the source, to which it is unpacked.
        relative_error: ‖w - s·q‖ / ‖w‖ to four digits; 0 if exact, None if unknown.
        sha256: digest of the rows packed in layout t2, whatever the layout of the file.
        scale_sha256: digest of the bytes of the scale.
        divisor: the number by which the source divides its trits, if it does. The scale then is
            1 / divisor in float32, and an export to that dialect writes the divisor.
    """

    shape: tuple[int, ...]
    split: int
    layout: str
    scale: str
    method: str
    source_dtype: str
    relative_error: float | None
    sha256: str
    scale_sha256: str
    divisor: float | None = None

    @property
    def rows(self) -> int:
        """Number of rows of the matrix view."""
        return rows_and_columns(self.shape, self.split)[0]

    @property
    def columns(self) -> int:
        """Number of columns of the matrix view."""
        return rows_and_columns(self.shape, self.split)[1]

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the packed tensor."""
        return (*self.shape[: self.split], LAYOUTS[self.layout].bytes_for(self.columns))

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scale tensor."""
        return Scale.parse(self.scale).shape(self.shape, self.split)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON data."""
        return vars(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Any, name: str) -> TernaryEntry:
        """Return the entry that ``to_dict`` made the data from.

        Raises:
            FormatError: the data breaks rule R10; has the name of the tensor.
        """
        fields = set(cls.__dataclass_fields__)
        found = _object(data, f"description of {name!r:.100}", fields)

        def require(good: bool, key: str, expected: str) -> None:
            if not good:
                message = f"is described with {key} {found[key]!r:.60}, expected {expected}."
                raise FormatError(message, rule="R10", tensor=name)

        def require_one_of(known: Iterable[str], key: str) -> None:
            names = tuple(known)  # a tuple: no dict can look up a list
            require(found[key] in names, key, either(names))

        shape, split = found["shape"], found["split"]
        require(
            isinstance(shape, list)
            and 0 < len(shape) <= MAX_RANK
            and all(type(n) is int and n > 0 for n in shape)
            and math.prod(shape) < 2**63,
            "shape",
            f"1 to {MAX_RANK} integers from 1, whose product is below 2**63",
        )
        require(type(split) is int and 0 <= split < len(shape), "split", f"0 to {len(shape) - 1}")
        require_one_of(LAYOUTS, "layout")
        require_one_of(("exact", *QUANTIZERS, UNKNOWN), "method")
        require_one_of(WEIGHT_DTYPES, "source_dtype")
        error = found["relative_error"]
        if found["method"] == UNKNOWN:
            require(error is None, "relative_error", "null")
        else:  # JSON has no infinity
            good = type(error) in (int, float) and error >= 0
            require(good, "relative_error", "a number from 0")
            found["relative_error"] = float(error)
        for key in ("sha256", "scale_sha256"):
            require(_is_digest(found[key]), key, _DIGEST)
        divisor = found["divisor"]
        if divisor is not None:
            require(
                type(divisor) in (int, float) and divisor != 0 and found["scale"] == "tensor",
                "divisor",
                "null, or a number other than 0 with scale tensor",
            )
            found["divisor"] = float(divisor)
        require(isinstance(found["scale"], str), "scale", either(GRANULARITIES))
        try:
            Scale.parse(found["scale"])
        except UsageError:
            require(False, "scale", either(GRANULARITIES))
        return cls(**{**found, "shape": tuple(shape)})


@dataclass(frozen=True)
class Shard:
    """The place of a file among the shards of a folder.

    Attributes:
        number: from 1; the first shard has the program.
        of: how many shards there are.
        program_sha256: digest of the canonical JSON of the program, the same in every shard.
    """

    number: int
    of: int
    program_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return the place as plain JSON data."""
        return {"number": self.number, "of": self.of, "program_sha256": self.program_sha256}

    @classmethod
    def from_dict(cls, data: Any) -> Shard:
        """Return the place that ``to_dict`` made the data from.

        Raises:
            FormatError: the data breaks rule R10.
        """
        found = _object(data, "shard", {"number", "of", "program_sha256"})
        number, of, program = found["number"], found["of"], found["program_sha256"]
        good = type(number) is int and type(of) is int and 1 <= number <= of < 2**31
        if not good or not _is_digest(program):
            message = f"is described as shard {data!r:.160}, expected 1 <= number <= of < 2**31"
            raise FormatError(f"{message}, and {_DIGEST}.", rule="R10")
        return cls(number, of, program)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def program_digest(program: Program | None) -> str:
    """Return the SHA-256 of the canonical JSON of a program; of null if there is none."""
    data = None if program is None else program.to_dict()
    return digest([canonical_json(data).encode("ascii")])


@dataclass(frozen=True)
class Document:
    """The whole description of a file.

    Attributes:
        program: the LayerDefs; None if they cannot express the names of the source, and in
            every shard but the first.
        tensors: the entries of ternary parameters, by name.
        kept: the SHA-256 of every other tensor, by name.
        aliases: other names of the source → the tensor whose storage they shared.
        shard: which shard of a folder the file is; None for a single file.
        metadata: the SHA-256 of the other values in ``__metadata__``, by key.
    """

    program: Program | None
    tensors: Mapping[str, TernaryEntry]
    kept: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    shard: Shard | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def to_json(self, entries: Mapping[str, Entry]) -> str:
        """Return canonical JSON that ends with a digest of itself and of the file's header."""
        data: dict[str, Any] = {
            "version": self.version.to_json(),
            "program": None if self.program is None else self.program.to_dict(),
            "tensors": {name: entry.to_dict() for name, entry in self.tensors.items()},
            "kept": dict(self.kept),
            "aliases": dict(self.aliases),
            "shard": None if self.shard is None else self.shard.to_dict(),
            "metadata": dict(self.metadata),
        }
        return canonical_json(data | {"sha256": _self_digest(data, entries)})

    @property
    def version(self) -> Version:
        """The lowest version of the format that has all rows that the description names."""
        return Version.of(self._rows())

    def _rows(self) -> Iterator[FormatRow]:
        if self.program is not None:
            yield from rows_of(self.program)
        for entry in self.tensors.values():
            yield from rows_of_weight(entry.layout, entry.scale)
            if entry.method in QUANTIZERS:
                yield QUANTIZERS[entry.method]

    def with_kept(self, digests: Mapping[str, str]) -> Document:
        """Return the document with the digests of kept tensors filled in."""
        return replace(self, kept={name: digests[name] for name in self.kept})


def parse_document(text: str, entries: Mapping[str, Entry]) -> tuple[Document, bool]:
    """Parse and check a description against the header of its file.

    Returns:
        The document, and whether its text is canonical and its own digest holds.

    Raises:
        FormatError: the text breaks one of the rules R8 to R13.
        LayerDefError: the program is malformed, or declares a tensor otherwise than the file.
    """
    raw = parse_json(text.encode("utf-8", "surrogatepass"), "R8", "description", MAX_NESTING)
    data = _object(raw, "description", {"version"}, open_ended=True)
    version = Version.parse(data["version"])
    with read_as(version):
        document = _read(raw)
    if version < document.version:
        raise FormatError(
            f"has format version {version}, but names ops, layouts or methods that need "
            f"{document.version}. The file is damaged: convert it again.",
            rule="R9",
        )
    check_entries(document, entries)
    if document.shard is None:
        check_program(document, entries)
    canonical = text == canonical_json(data)
    stated = data.pop("sha256")
    return document, canonical and stated == _self_digest(data, entries)


def _read(raw: Any) -> Document:
    fields = {"version", "program", "tensors", "kept", "aliases", "shard", "metadata", "sha256"}
    data = _object(raw, "description", fields)
    program = None
    if data["program"] is not None:
        program = Program.from_dict(data["program"])
        validate(program)
    tensors = {
        name: TernaryEntry.from_dict(value, name)
        for name, value in _object(data["tensors"], "tensors", set(), open_ended=True).items()
    }
    kept = _strings(data["kept"], "kept")
    aliases = _strings(data["aliases"], "aliases")
    digests = _strings(data["metadata"], "metadata")
    shard = None if data["shard"] is None else Shard.from_dict(data["shard"])
    for name, value in [*kept.items(), *digests.items(), ("description", data["sha256"])]:
        if not _is_digest(value):
            message = f"has digest {value!r:.80}, expected {_DIGEST}."
            raise FormatError(message, rule="R10", tensor=name)
    return Document(program, tensors, kept, aliases, shard, digests)


def _self_digest(data: Mapping[str, Any], entries: Mapping[str, Entry]) -> str:
    described = {name: [entry.dtype, list(entry.shape)] for name, entry in entries.items()}
    return digest([canonical_json([data, described]).encode("ascii")])


def _object(data: Any, what: str, fields: set[str], *, open_ended: bool = False) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise FormatError(f"{what} is {data!r:.60}, expected an object.", rule="R10")
    missing = fields - set(data)
    unknown = set() if open_ended else set(data) - fields
    for names, problem in ((missing, "lacks"), (unknown, "has the unknown")):
        if names:
            raise FormatError(f"{what} {problem} field {min(names)!r:.60}.", rule="R10")
    return data


def _strings(data: Any, what: str) -> dict[str, str]:
    found = _object(data, what, set(), open_ended=True)
    for name, value in found.items():
        if not isinstance(value, str):
            message = f"{what} has {value!r:.60} for {name!r:.60}, expected a string."
            raise FormatError(message, rule="R10")
    return found


def check_entries(document: Document, entries: Mapping[str, Entry]) -> None:
    """Check R11 and R12: description and header have the same tensors, of fitting shapes."""
    expected = set(document.kept)
    for name, entry in document.tensors.items():
        for stored, shape, dtypes in (
            (f"{name}_packed", entry.packed_shape, ("uint8",)),
            (f"{name}_scale", entry.scale_shape, SCALE_DTYPES),
        ):
            if stored in expected:
                message = f"is described as a kept tensor and as a part of {name!r:.100}."
                raise FormatError(message, rule="R12", tensor=stored)
            expected.add(stored)
            found = entries.get(stored)
            if found is None:
                raise FormatError(_MISSING, rule="R12", tensor=stored)
            if found.dtype not in dtypes:
                raise FormatError(
                    f"is {found.dtype}, expected {' or '.join(dtypes)}.", rule="R11", tensor=stored
                )
            if found.shape != shape:
                raise FormatError(
                    f"has shape {found.shape}, expected {shape} for {entry.shape} in layout "
                    f"{entry.layout} with scale {entry.scale}. The file is damaged: convert it "
                    "again.",
                    rule="R11",
                    tensor=stored,
                )
    for names, problem in (
        (expected - set(entries), _MISSING),
        (set(entries) - expected, "is in the file, but not in its description."),
    ):
        if names:
            raise FormatError(problem, rule="R12", tensor=min(names))
    taken = expected | set(document.tensors)
    for alias, target in document.aliases.items():
        if alias in taken:
            raise FormatError("is both an alias and a tensor.", rule="R12", tensor=alias)
        if target not in document.kept and target not in document.tensors:
            message = f"is an alias of {target!r:.100}, which is not described."
            raise FormatError(message, rule="R12", tensor=alias)


def check_program(document: Document, entries: Mapping[str, Entry]) -> None:
    """Check R13: the LayerDefs have exactly the tensors of the file."""
    if document.program is None:
        return
    named = set()
    for slot in slots(document.program):
        param, name = slot.param, slot.name
        named.add(name)
        if param.param_type == "TernaryTensor":
            entry = document.tensors.get(name)
            found: tuple[Any, ...] = ()
            if entry is not None:
                dtype = entries[f"{name}_scale"].dtype
                found = (entry.shape, entry.split, entry.layout, entry.scale, dtype)
            wanted: tuple[Any, ...] = (
                param.shape, param.rows_split, param.layout, param.scale, param.dtype
            )  # fmt: skip
        else:
            kept = entries[name] if name in document.kept else None
            found = () if kept is None else (kept.shape, kept.dtype)
            wanted = (param.shape, param.dtype)
        if found != wanted:
            raise LayerDefError(
                f"is {found or f'not a {param.param_type}'} in the file, but {wanted} in the "
                "LayerDefs.",
                tensor=name,
            )
    unnamed = (set(document.tensors) | set(document.kept)) - named
    if unnamed:
        raise FormatError("is in no LayerDef.", rule="R13", tensor=min(unnamed))
