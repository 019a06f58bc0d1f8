"""Small descriptions of files, and what reading them says."""

import json

import pytest

from tpack.container.document import parse_document
from tpack.container.header import Entry
from tpack.container.version import KNOWN
from tpack.errors import FormatError

HEX = "0123456789abcdef" * 4
WEIGHT = {
    "shape": [3, 10],
    "split": 1,
    "layout": "t2",
    "scale": "row",
    "method": "absmean",
    "source_dtype": "float16",
    "relative_error": 0.25,
    "sha256": HEX,
    "scale_sha256": HEX[::-1],
    "divisor": None,
}
SHARD = {"number": 2, "of": 3, "program_sha256": HEX}


def described(**fields):
    """A description of a weight ``w`` and a kept ``b``, with other fields."""
    return {
        "version": KNOWN.to_json(),
        "program": None,
        "tensors": {"w": WEIGHT},
        "kept": {"b": HEX},
        "aliases": {},
        "shard": None,
        "metadata": {},
        "sha256": HEX,
    } | fields


def stored(**tensors):
    """The entries of a file: name → (dtype, shape)."""
    found = {"w_packed": ("uint8", (3, 3)), "w_scale": ("float32", (3, 1)), "b": ("int64", (5,))}
    return {name: Entry(name, *said, 0, 0) for name, said in (found | tensors).items()}


def parsed(data, entries=None):
    return parse_document(json.dumps(data), stored() if entries is None else entries)


def refusal(data, entries=None):
    """Rule, tensor and message of an error."""
    with pytest.raises(FormatError) as caught:
        parsed(data, entries)
    return caught.value.rule, caught.value.tensor, caught.value.message
