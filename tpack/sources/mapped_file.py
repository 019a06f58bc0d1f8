"""Read the tensors that torch has mapped from a file with system calls, as other sources do.

If a mapped file becomes shorter, a signal ends the process that touches the missing part; a
system call returns an error instead.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from tpack.container.opening import read_into
from tpack.sources.archive import Archive

_MAPS = Path("/proc/self/maps")


class MappedFile:
    """A file that torch has mapped tensors from. Without /proc/self/maps the mapping is read.

    Args:
        handle: of the open file, which somebody else closes.
        archive: its records, if it is a zip archive.
    """

    def __init__(self, handle: int, archive: Archive | None = None) -> None:
        self._handle, self._archive = handle, archive
        self._checked: set[int] = set()
        self._inode = os.fstat(handle).st_ino
        self._spans: list[tuple[int, int, int]] = []

    @staticmethod
    def tells() -> bool:
        """Return whether the system lists the mapped files."""
        return _MAPS.exists()

    def check(self, tensor: Tensor) -> None:
        """Check the size and CRC-32 of the record that holds a tensor, the first time.

        Raises:
            InputError: it is damaged.
        """
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if self._archive is None or not storage.nbytes() or address in self._checked:
            return
        place = self._offset(address)
        if place is not None:
            self._archive.check_storage(place, storage.nbytes(), tensor.element_size())
        self._checked.add(address)

    def read(self, piece: Tensor) -> Tensor:
        """Return a copy of a contiguous tensor, or the tensor itself if it is not in the file.

        Raises:
            InputError: the file became shorter, or cannot be read.
        """
        offset = self._offset(piece.data_ptr()) if piece.numel() else None
        if offset is None:
            return piece
        copy = torch.empty_like(piece)
        read_into(self._handle, memoryview(copy.view(torch.uint8).numpy()), offset)
        return copy

    def read_strided(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor that is not contiguous: its whole storage is read.

        Raises:
            InputError: as ``read``.
        """
        stored = tensor.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(stored)
        copy = self.read(whole)
        if copy is whole:
            return tensor
        made = torch.empty(0, dtype=tensor.dtype)
        place = tensor.storage_offset(), tensor.shape, tensor.stride()
        return made.set_(copy.untyped_storage(), *place)

    def _offset(self, address: int) -> int | None:
        """Return where in the file a byte of memory comes from; None if it is not in the file."""
        for fresh in (False, True):
            if fresh:
                self._spans = list(self._mapped())
            for start, stop, offset in self._spans:
                if start <= address < stop:
                    return offset + address - start
        return None

    def _mapped(self) -> list[tuple[int, int, int]]:
        """List the parts of memory mapped from the file: first and last address, offset."""
        try:
            lines = _MAPS.read_text().splitlines()
        except OSError:  # not Linux
            return []
        spans = []
        for line in lines:
            addresses, _, offset, _, inode, *_ = line.split(maxsplit=5)
            if int(inode) == self._inode:
                start, stop = (int(text, 16) for text in addresses.split("-"))
                spans.append((start, stop, int(offset, 16)))
        return spans
