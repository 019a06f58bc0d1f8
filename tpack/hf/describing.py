"""The description of a packed model as it is now, from its modules and what it was loaded from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from tpack.checkpoint import repacked, tensor_bytes
from tpack.codec import Scale
from tpack.container import Document, Origin, Piece, Shard, TernaryEntry
from tpack.container.document import NO_DIGEST, UNKNOWN
from tpack.dtypes import BY_NAME
from tpack.errors import InputError, LayerDefError, UnsupportedError, UsageError, locate
from tpack.layerdef import Param, Program, Slot, mirror, validate
from tpack.layerdef.completion import Found, complete, match_slots
from tpack.nn import BitLinear
from tpack.nn.modules import PackedWeight


class Described:
    """The tensors of a model under the names of its checkpoint, and what is to be said of them.

    Attributes:
        tensors: as stored.
        ternary: entries of packed weights by name.
        int8_inputs: packed weights of layers that round their inputs.
        aliases: as in the checkpoint that the model came from.
        program: the LayerDefs; None where names cannot be expressed.
        metadata: other keys of ``__metadata__``, for the first file.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        ternary: Mapping[str, TernaryEntry],
        old: Document,
        origin: Origin,
        int8_inputs: Collection[str] = (),
    ) -> None:
        self.tensors = tensors
        self.metadata = origin.metadata
        self._digests = origin.digests
        self.ternary = ternary
        self.int8_inputs = int8_inputs
        self._weights = {f"{name}_{part}": name for name in ternary for part in ("packed", "scale")}
        names = {self._weights.get(name, name) for name in tensors}
        self.aliases = {alias: name for alias, name in old.aliases.items() if name in names}
        # a program that calls a weight kept, or packed, that is so no longer is of no use
        same = old.kept.keys().isdisjoint(ternary)
        self.program = self._program(old.program if same else None)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def split(self, limit: int) -> list[list[str]]:
        """Stored names, in lists of at most ``limit`` bytes; a weight stays with its scale."""
        units: dict[str, list[str]] = {}
        for name in self.tensors:
            units.setdefault(self._weights.get(name, name), []).append(name)
        shards: list[list[str]] = [[]]
        room = limit
        for unit in units.values():
            size = sum(self.tensors[name].nbytes for name in unit)
            if size > room and shards[-1]:
                shards.append([])
                room = limit
            shards[-1] += unit
            room -= size
        return shards

    def part(self, names: Iterable[str], shard: Shard | None) -> tuple[Document, list[Piece]]:
        """The document and the pieces of one file."""
        plain = {self._weights.get(name, name) for name in names}
        first = shard is None or shard.number == 1
        document = Document(
            self.program if first else None,
            {name: self.ternary[name] for name in plain if name in self.ternary},
            {name: NO_DIGEST for name in plain if name not in self.ternary},
            {alias: name for alias, name in self.aliases.items() if name in plain},
            shard,
            self._digests if first else {},
        )
        return document, self.pieces(names)

    def pieces(self, names: Iterable[str]) -> list[Piece]:
        """What is to be written of some tensors."""
        return [self._piece(name) for name in names]

    def _piece(self, name: str) -> Piece:
        tensor, weight = self.tensors[name], self._weights.get(name)
        if weight is not None and name.endswith("_packed"):
            entry, scale = self.ternary[weight], self.tensors[f"{weight}_scale"]
            return Piece(name, "uint8", entry.packed_shape, partial(_chunks, entry, tensor, scale))
        shape = tuple(tensor.shape)
        return Piece(name, _dtype(tensor), shape, lambda: [tensor_bytes(tensor)])

    # ---- LayerDefs

    def _program(self, old: Program | None) -> Program | None:
        """The old program with what changed, or else the one that the names draw."""
        found = {
            name: Found(tuple(tensor.shape), _dtype(tensor))
            for name, tensor in self.tensors.items()
            if name not in self._weights
        }
        for name, entry in self.ternary.items():
            dtype = _dtype(self.tensors[f"{name}_scale"])
            found[name] = Found(entry.shape, dtype, Scale.parse(entry.scale))
        layouts = {entry.layout for entry in self.ternary.values()}
        try:
            if old is not None and len(layouts) == 1:
                match_slots(old, {name: one.shape for name, one in found.items()})
                return complete(old, found, *layouts)[0]
        except LayerDefError:  # other names than it had: loaded as another class, perhaps
            pass
        try:
            slots = [Slot(name, self._param(name, one)) for name, one in found.items()]
            program = mirror(slots, int8_inputs=self.int8_inputs)
            validate(program)
        except LayerDefError:
            return None
        return program

    def _param(self, name: str, found: Found) -> Param:
        if found.scale is None:
            kind = "Tensor" if BY_NAME[found.dtype].is_float else "Buffer"
            return Param(name, kind, found.shape, dtype=found.dtype)
        layout, scale = self.ternary[name].layout, str(found.scale)
        return Param(
            name, "TernaryTensor", found.shape, dtype=found.dtype, scale=scale, layout=layout
        )


def describe(
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    document: Document | None,
    origin: Origin,
) -> Described:
    """Describe a packed model.

    Args:
        state: its tensors under the names that it has in transformers.
        document: the description of the checkpoint that it was loaded from.
        origin: what is known of its weights from there.

    Raises:
        UsageError: a tensor of the model is not among them; a weight is unfrozen.
        InputError: a scale is not finite.
        UnsupportedError: a packed layer was replaced by one of floats.
        NotTernaryError: a byte without valid codes.
    """
    old = document or Document(None, {}, {})
    unsaved = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}  # noqa: SLF001
    own = {name: tensor.detach() for name, tensor in state.items() if name not in unsaved}
    _check_whole(model, own, unsaved)
    tensors: dict[str, Tensor] = revert_weight_conversion(model, own)
    names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    ternary, int8_inputs = {}, set()
    for path, module in model.named_modules():
        if isinstance(module, PackedWeight):
            packed, scale = own[f"{path}.weight_packed"], own[f"{path}.weight_scale"]
            name = names[packed.data_ptr()].removesuffix("_packed")
            with locate(tensor=name):
                ternary[name] = origin.entry(name, _entry(module, packed, scale), _dtype(scale))
            if isinstance(module, BitLinear):
                int8_inputs.add(name)
    for name in tensors:
        if name in old.tensors:
            raise UnsupportedError(
                "was packed when the model was loaded, and is floats now. Put a layer of tpack.nn "
                "in its place, or save the plain weights and convert them: tpack convert.",
                tensor=name,
            )
    return Described(tensors, ternary, old, origin, int8_inputs)


def _check_whole(model: PreTrainedModel, own: Mapping[str, Tensor], unsaved: set[str]) -> None:
    """Make sure that all that a model has is there to be saved, and that its weights are packed."""
    for path, module in model.named_modules():
        if isinstance(module, PackedWeight) and "weight_packed" not in module._buffers:  # noqa: SLF001
            raise UsageError(
                "is unfrozen, expected packed weights. Pack them first: tpack.nn.freeze(model).",
                tensor=f"{path}.weight",
            )
    for name in model.state_dict():
        if name not in own and name not in unsaved:
            raise UsageError(
                "is missing in the state_dict to be saved, expected all tensors of the model.",
                tensor=name,
            )


def _entry(module: PackedWeight, packed: Tensor, scale: Tensor) -> TernaryEntry:
    """The entry of a weight as it lies now."""
    if not scale.isfinite().all():
        raise InputError(
            "has a scale with NaN or infinity, expected finite values. Training may have diverged."
        )
    granularity = str(Scale.of(scale.shape, module.shape, 1, module.group_size))
    new = TernaryEntry(
        shape=module.shape,
        split=1,
        layout=module.options["layout"],
        scale=granularity,
        method=UNKNOWN,
        source_dtype=_dtype(scale),
        relative_error=None,
        sha256=NO_DIGEST,
        scale_sha256=NO_DIGEST,
    )
    return repacked(new, packed, scale)[0]


def _chunks(entry: TernaryEntry, packed: Tensor, scale: Tensor) -> list[memoryview]:
    """The bytes of a packed weight, made when they are written."""
    return [memoryview(repacked(entry, packed, scale)[1].reshape(-1))]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
