"""What a comparison of two checkpoints found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tpack.difference.changes import Blocks, Table


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor that both checkpoints have differs.

    Attributes:
        form: what of its form differs: ``shape``, ``layout``, ``scale``, ``dtype`` … → the two
            values as text.
        values: elements or trits in each of the two.
        changed: how many of them differ; None where the shapes do.
        scales: values of the scale, at the finer granularity of the two.
        scales_changed: how many of them differ, as numbers where their dtypes do; None where
            neither scale can be repeated to the granularity of the other.
        factors: least and greatest of second / first over the scales that differ and are finite
            numbers other than 0 in both; None if there are none.
        turned: how many trits were -1, 0, +1 in the first and are so in the second, ``[first + 1,
            second + 1]``; None where none changed.
        blocks: where in the matrix trits changed; None where none did.
        shape: of the tensor in the first.
    """

    name: str
    kind: str
    form: dict[str, tuple[str, str]]
    values: int
    changed: int | None
    scales: int = 0
    scales_changed: int | None = 0
    factors: tuple[float, float] | None = None
    turned: Table | None = None
    blocks: Blocks | None = field(default=None, repr=False)
    shape: tuple[int, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.form and self.changed == 0 and self.scales_changed == 0

    @property
    def share(self) -> float | None:
        """Changed trits or elements as a share of all."""
        return None if self.changed is None else self.changed / max(self.values, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        form = {key: list(pair) for key, pair in self.form.items()}
        data = {key: value for key, value in vars(self).items() if key != "blocks"}
        return {**data, "form": form, "share": self.share}


@dataclass(frozen=True)
class DiffReport:
    """How two checkpoints differ.

    Attributes:
        only_first: tensors that the second has not.
        only_second: tensors that the first has not.
        tensors: those of both that differ.
        compared: how many tensors both have.
        trits: how many trits of them were compared.
        layerdefs: LayerDefs that differ → ``changed``, ``only in the first`` or ``only in the
            second``; under ``root``, that the models have other roots.
        aliases: shared names that are not the same in both.
        metadata: keys of the safetensors metadata whose text is not the same in both.
    """

    first: str
    second: str
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    compared: int
    trits: int
    layerdefs: dict[str, str]
    aliases: tuple[str, ...]
    metadata: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs; how tensors lie in shards does not count."""
        return not (
            self.only_first
            or self.only_second
            or self.tensors
            or self.layerdefs
            or self.aliases
            or self.metadata
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "equal": self.equal,
            "first": self.first,
            "second": self.second,
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "compared": self.compared,
            "trits": self.trits,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "layerdefs": self.layerdefs,
            "aliases": list(self.aliases),
            "metadata": list(self.metadata),
        }
