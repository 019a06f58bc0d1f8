"""The working folder of a folder conversion: its packed shards, kept for a resumed run.

It lies beside the output under a hidden name. Each packed shard is two files in it: a spool
with packed bytes and scales, and a manifest with their offsets and digests. A manifest is written
only once its spool is on the disk, and a later run checks every digest before it takes a shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from tpack.codec import pack, unpack
from tpack.container import TernaryEntry, digest, new_file
from tpack.container.folders import Workplace
from tpack.container.header import CHUNK
from tpack.container.reader import stored_dtype
from tpack.conversion.cases import Left
from tpack.conversion.packing import Batch, Packed
from tpack.conversion.plan import Plan
from tpack.errors import TpackError
from tpack.wording import spell_name


@dataclass(frozen=True)
class Work(Workplace):
    """The working folder of one target.

    Attributes:
        key: identifies source and options; shards of a conversion with another key are not used.
        options: as plain JSON data, to name those that differ in other conversions.
    """

    key: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, target: Path, folder: Path | None, key: str, options: Mapping[str, Any]) -> Work:
        """Return the working folder of an output: ``folder``, or hidden beside the output."""
        return cls(folder or Workplace.beside(target).folder, key, options)

    # ---- shards

    def spool(self, number: int) -> IO[bytes]:
        """Open a new file for the packed bytes of a shard, and drop its old manifest."""
        self._manifest(number).unlink(missing_ok=True)
        return self._spool(number).open("w+b")

    def finish(self, number: int, batch: Batch) -> None:
        """Write the scales after the packed bytes of a shard, then its manifest."""
        spool = batch.spool
        spool.seek(0, os.SEEK_END)
        packed: dict[str, Any] = {}
        for name, item in batch.packed.items():
            packed[name] = {
                "entry": item.entry.to_dict(),
                "dtype": item.dtype,
                "offset": item.offset,
                "length": item.length,
                "sha256": item.sha256,
                "scale_offset": spool.tell(),
            }
            spool.write(np.ascontiguousarray(item.scale).tobytes())
        spool.flush()
        os.fsync(spool.fileno())
        manifest = {
            "key": self.key,
            "options": dict(self.options),
            "packed": packed,
            "kept": list(batch.kept),
            "left": {name: asdict(why) for name, why in batch.left.items()},
            "zero": batch.zero,
        }
        with new_file(self._manifest(number), force=True) as file:
            file.write(json.dumps(manifest, sort_keys=True).encode("ascii"))

    def load(self, number: int, plan: Plan, resources: Any) -> Batch | None:
        """Load a packed shard; None if it is missing, damaged or of another conversion.

        Args:
            resources: the ``ExitStack`` that closes the spool.
        """
        manifest = self._read(number)
        if manifest is None or manifest["key"] != self.key:
            return None
        try:
            spool = resources.enter_context(self._spool(number).open("rb"))
            batch = Batch(spool)
            for name, item in manifest["packed"].items():
                batch.packed[name] = _packed(name, item, spool)
                if not is_whole(batch.packed[name], spool):
                    return None
            for name, why in manifest["left"].items():
                batch.leave(name, Left(**why), plan)
            for name in manifest["kept"]:
                if name not in batch.kept:
                    batch.kept[name], batch.reasons[name] = plan.kept[name], plan.reasons[name]
            batch.zero += manifest["zero"]
        except (OSError, ValueError, KeyError, TypeError, TpackError):
            return None
        return batch

    def has(self, number: int) -> bool:
        """Return whether a shard has a manifest of this conversion."""
        found = self._read(number)
        return found is not None and found["key"] == self.key

    def other(self, number: int) -> str | None:
        """Say how the conversion that packed a shard differs from this one.

        Returns:
            The options that differ; if none does, that the source has changed. None if the shard
            is not packed, or is packed by this conversion.
        """
        found = self._read(number)
        if found is None or found["key"] == self.key:
            return None
        theirs = found["options"]
        told = [
            f"{spell_name(name)} {theirs.get(name)!r:.60}, not {mine!r:.60}"
            for name, mine in self.options.items()
            if theirs.get(name) != mine
        ]
        return ", ".join(told) or "another state of the source"

    def _read(self, number: int) -> dict[str, Any] | None:
        """Read the manifest of a shard; None if there is none, or it cannot be read."""
        try:
            found = json.loads(self._manifest(number).read_bytes())
            return {**found, "key": str(found["key"]), "options": dict(found["options"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _spool(self, number: int) -> Path:
        return self.folder / f"{number:05}.spool"

    def _manifest(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"

    # ---- the end

    def mark_done(self) -> None:
        """Mark the conversion as finished, for processes that come late."""
        (self.folder / "done").write_text(self._done(self.output))

    def is_done(self, target: Path) -> bool:
        """Return whether another process has finished this conversion."""
        with suppress(OSError):
            return (self.folder / "done").read_text() == self._done(target)
        return False

    def _done(self, output: Path) -> str:
        return f"{self.key} {output.stat().st_ino}"  # a folder that is renamed keeps its number

    def enter(self, rank: int) -> None:
        """Note that a process is at work, and forget that an earlier run of it had left."""
        (self.folder / f"left-{rank}").unlink(missing_ok=True)

    def leave(self, rank: int, of: int, target: Path) -> None:
        """Note that a process is done; the last one of a finished conversion removes the folder."""
        with suppress(FileNotFoundError):  # tidied up already
            (self.folder / f"left-{rank}").touch()
            left = all((self.folder / f"left-{other}").exists() for other in range(of))
            if left and self.is_done(target):
                self.remove()


def _packed(name: str, item: Any, spool: IO[bytes]) -> Packed:
    entry = TernaryEntry.from_dict(item["entry"], name)
    dtype = np.dtype(stored_dtype(item["dtype"]))
    spool.seek(item["scale_offset"])
    count = int(np.prod(entry.scale_shape))
    scale = np.frombuffer(spool.read(count * dtype.itemsize), dtype).reshape(entry.scale_shape)
    return Packed(entry, scale, item["dtype"], item["offset"], item["length"], item["sha256"])


def is_whole(item: Packed, spool: IO[bytes]) -> bool:
    """Return whether a weight in a spool has the digests of its entry."""
    layout, state = item.entry.layout, hashlib.sha256()
    width = item.entry.packed_shape[-1]
    step = max(1, CHUNK // width) * width
    spool.seek(item.offset)
    for start in range(0, item.length, step):
        data = spool.read(min(step, item.length - start))
        if layout != "t2":
            rows = np.frombuffer(data, np.uint8).reshape(-1, width)
            data = pack(unpack(rows, item.entry.columns, layout)).tobytes()
        state.update(data)
    same = state.hexdigest() == item.entry.sha256
    return same and digest([item.scale.tobytes()]) == item.entry.scale_sha256
