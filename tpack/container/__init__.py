"""The file: safetensors with a description inside. docs/format.md is the specification.

``header`` reads and lays out the safetensors header, ``document`` is the description under
its key ``tpack``, ``reader`` opens a file and ``writer`` makes one, ``atomic`` puts it in
place, ``origin`` is what a loaded module remembers of it. Needs no torch.
"""

from tpack.container.atomic import new_file
from tpack.container.document import Document, Shard, TernaryEntry, digest, program_digest
from tpack.container.header import Entry, TensorFile
from tpack.container.index import INDEX, SINGLE, Index, read_index, write_index
from tpack.container.origin import Origin
from tpack.container.reader import Checkpoint, checkpoint_files, is_checkpoint
from tpack.container.strictjson import parse_json
from tpack.container.writer import Piece, write_checkpoint, write_plain_shards, write_tensors

__all__ = [
    "INDEX",
    "SINGLE",
    "Checkpoint",
    "Document",
    "Entry",
    "Index",
    "Origin",
    "Piece",
    "Shard",
    "TensorFile",
    "TernaryEntry",
    "checkpoint_files",
    "digest",
    "is_checkpoint",
    "new_file",
    "parse_json",
    "program_digest",
    "read_index",
    "write_checkpoint",
    "write_index",
    "write_plain_shards",
    "write_tensors",
]
