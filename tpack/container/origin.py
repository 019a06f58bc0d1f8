"""What a module that was loaded remembers of its checkpoint, beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tpack.container.document import TernaryEntry
from tpack.container.reader import Checkpoint


@dataclass(frozen=True)
class Origin:
    """Where the weights of a module came from, as plain data that copies and pickles keep.

    A weight keeps its method, error, source dtype and divisor for as long as its trits and its
    scale are the ones that were loaded. Then ``load`` and ``save`` give the same bytes.

    Attributes:
        tensors: entries of the ternary parameters by name.
        dtypes: of their scales.
        metadata: other keys of ``__metadata__``.
        digests: SHA-256 of those of them that belong to the checkpoint.
    """

    tensors: Mapping[str, TernaryEntry] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Checkpoint) -> Origin:
        """Return the origin of the weights that are loaded from a checkpoint."""
        document = file.document
        return cls(
            dict(document.tensors),
            {name: file.entries[f"{name}_scale"].dtype for name in document.tensors},
            {key: text for key, text in file.metadata.items() if key not in ("format", "tpack")},
            dict(document.metadata),
        )

    def entry(self, name: str, now: TernaryEntry, dtype: str) -> TernaryEntry:
        """Return the entry of a weight as it is now, with what is known of its source.

        Args:
            now: its form and digests, and what is said of its source if it is another weight than
                it was; the layout may be another than it had.
            dtype: of its scale.
        """
        old = self.tensors.get(name)
        if old is not None and (_identity(old), self.dtypes[name]) == (_identity(now), dtype):
            return replace(old, layout=now.layout)
        return now


def _identity(entry: TernaryEntry) -> tuple[object, ...]:
    """The fields in which two entries of the same weight agree."""
    return entry.shape, entry.split, entry.scale, entry.sha256, entry.scale_sha256
