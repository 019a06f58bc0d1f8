"""Files of at most 10 MB that are made to cost time or memory; each must be refused at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice, product
from typing import Any

from tpack.container.version import KNOWN

#: Bytes of a hostile file.
SIZE = 10_000_000


def file_of(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header, whatever it is."""
    return len(header).to_bytes(8, "little") + header + data


def described(program: Any, **fields: Any) -> bytes:
    """A file without tensors, whose description holds this program."""
    description = {
        "version": KNOWN.to_json(),
        "program": program,
        "tensors": {},
        "kept": {},
        "aliases": {},
        "shard": None,
        "metadata": {},
        "sha256": "0" * 64,
    } | fields
    text = json.dumps(description, separators=(",", ":"))
    return file_of(json.dumps({"__metadata__": {"format": "pt", "tpack": text}}).encode())


def identifier(name: str) -> dict[str, Any]:
    return {"node": "Identifier", "name": name}


def returns(value: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"node": "Return", "value": value}]


def child(name: str, layer: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "param_type": "Layer", "layer": layer, **fields}


# ---- JSON


def many_keys() -> bytes:
    """Over a million keys of four letters."""
    letters = [bytes([letter]) for letter in range(0x41, 0x41 + 33) if letter != 0x5C]
    keys = islice(map(b"".join, product(letters, repeat=4)), 1_040_000)
    return file_of(b"{" + b",".join(b'"%b":0' % key for key in keys) + b"}")


def many_values() -> bytes:
    return file_of(b'{"a":[' + b"0," * 1_900_000 + b"0]}")


def many_floats() -> bytes:
    return file_of(b'{"a":[' + b"0.5," * 1_900_000 + b"0]}")


def many_lists() -> bytes:
    return file_of(b'{"a":[' + b"[]," * 1_900_000 + b"0]}")


def many_objects() -> bytes:
    return file_of(b'{"a":[' + b'{"a":0},' * 990_000 + b"0]}")


def nested_objects() -> bytes:
    group = b'{"":' * 60 + b"0" + b"}" * 60
    return file_of(b'{"a":[' + (group + b",") * (SIZE // 302) + b"0]}")


def many_strings() -> bytes:
    return file_of(b'{"a":[' + b",".join(b'"%x"' % i for i in range(1_050_000)) + b"]}")


def deep_lists() -> bytes:
    return file_of(b"[" * SIZE)


def deep_objects() -> bytes:
    return file_of(b'{"":' * (SIZE // 4))


def long_name() -> bytes:
    return file_of(b'{"' + b"n" * SIZE + b'":{}}')


def long_escapes() -> bytes:
    return file_of(b'{"' + rb"\u00e9" * (SIZE // 6) + b'":{}}')


def quotes() -> bytes:
    return file_of(b'"' * SIZE)


def backslashes() -> bytes:
    return file_of(b'{"' + b"\\" * SIZE + b'":0}')


def blanks() -> bytes:
    return file_of(b"{" + b" " * SIZE + b"}x")


def long_integer() -> bytes:
    return file_of(b'{"a":' + b"9" * SIZE + b"}")


def long_fraction() -> bytes:
    return file_of(b'{"a":0.' + b"9" * SIZE + b"}")


def long_exponent() -> bytes:
    return file_of(b'{"a":1e' + b"9" * SIZE + b"}")


# ---- headers


def empty_tensors() -> bytes:
    parts = (b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(SIZE // 58))
    return file_of(b"{" + b",".join(parts) + b"}")


def many_dims() -> bytes:
    part = b'{"dtype":"U8","shape":[' + b"1," * 120 + b'0],"data_offsets":[0,0]}'
    return file_of(b"{" + b",".join(b'"%x":' % i + part for i in range(SIZE // 300)) + b"}")


def long_shape() -> bytes:
    shape = b"9223372036854775807," * (SIZE // 20)
    return file_of(b'{"a":{"dtype":"U8","shape":[' + shape + b'1],"data_offsets":[0,0]}}')


def many_metadata() -> bytes:
    parts = b",".join(b'"%x":"b"' % i for i in range(800_000))
    return file_of(b'{"__metadata__":{' + parts + b"}}")


# ---- trees


def unfolding() -> bytes:
    """Each of 60 layers has the next one twice: 2^60 modules."""
    layers = [
        {"name": f"L{i}", "params": [child("a", f"L{i + 1}"), child("b", f"L{i + 1}")]}
        for i in range(60)
    ]
    return described({"root": "L0", "layers": [*layers, {"name": "L60", "params": []}]})


def repeats() -> bytes:
    """Each of 30 layers has the next one a thousand times."""
    layers = [
        {"name": f"L{i}", "params": [child("a", f"L{i + 1}", repeat=1000)]} for i in range(30)
    ]
    return described({"root": "L0", "layers": [*layers, {"name": "L30", "params": []}]})


def deep_layers() -> bytes:
    """A chain of 2000 layers, of which the root has the lowest ones first."""
    count = 2_000
    layers = [
        {"name": f"L{i}", "params": [child("a", f"L{i + 1}")] if i < count - 1 else []}
        for i in range(count)
    ]
    first = [child(f"c{i}", f"L{i}") for i in range(count - 50, 0, -50)]
    root = {"name": "Root", "params": [*first, child("last", "L0")]}
    return described({"root": "Root", "layers": [root, *layers]})


def many_layers() -> bytes:
    """A root with as many layers as fit, each another one."""
    count = 80_000
    params = [child(f"a{i}", f"L{i}") for i in range(count)]
    layers = [{"name": f"L{i}", "params": []} for i in range(count)]
    return described({"root": "Root", "layers": [{"name": "Root", "params": params}, *layers]})


def many_tensors() -> bytes:
    """A layer of many tensors, a hundred thousand times."""
    params = [{"name": f"p{i}", "param_type": "Buffer", "shape": [0]} for i in range(100_000)]
    root = {"name": "Root", "params": [child("a", "L", repeat=90_000)]}
    return described({"root": "Root", "layers": [root, {"name": "L", "params": params}]})


def dotted_names() -> bytes:
    """Many children, and many names that are looked for among them."""
    count = 30_000
    args = {"normalized_shape": 1}
    params = [child(f"c{i}", "RMSNorm", args=args) for i in range(count)]
    names = [identifier(f"c{count - 1}.weight") for _ in range(count)]
    value = {"node": "Tuple", "items": names}
    layer = {"name": "L", "params": params, "body": returns(value)}
    return described({"root": "L", "layers": [layer]})


def positions() -> bytes:
    """Lists of layers that are nearly all gaps."""
    params = [child(f"c{i}.99999", "Leaf") for i in range(50_000)]
    layers = [{"name": "Root", "params": params}, {"name": "Leaf", "params": []}]
    return described({"root": "Root", "layers": layers})


def wide_expression() -> bytes:
    """One sum of very many parts, as deep as may be."""
    value = identifier("x")
    for _ in range(5):
        items = {"node": "Tuple", "items": [value] * 9}
        value = {"node": "FunctionCall", "function": "cat", "args": [items]}
    layer = {"name": "L", "params": [], "body": returns(value)}
    return described({"root": "L", "layers": [layer]})


def many_statements() -> bytes:
    statement = {"node": "Assignment", "target": "x", "value": identifier("x")}
    layer = {"name": "L", "params": [], "body": [statement] * 100_000}
    return described({"root": "L", "layers": [layer]})


def many_aliases() -> bytes:
    aliases = {f"a{i}": "t" for i in range(550_000)}
    return described(None, aliases=aliases)


def many_gguf_strings() -> bytes:
    """Over a million strings of a letter in an array of metadata, more than a file may have."""
    count = SIZE // 9
    string = (1).to_bytes(8, "little") + b"a"
    head = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
    value = (9).to_bytes(4, "little") + (8).to_bytes(4, "little") + count.to_bytes(8, "little")
    return head + string + value + string * (count - 1)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in a message of protobuf."""
    size, length = len(content), b""
    while size >= 128:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def onnx_model(graph: bytes) -> bytes:
    """An ONNX model with the fields of its graph."""
    return b"\x08\x0a" + _field(7, graph)


def many_onnx_nodes() -> bytes:
    """Empty nodes of two bytes, each of which would take a hundred in memory."""
    return onnx_model(b"\x0a\x00" * (SIZE // 2))


def deep_onnx() -> bytes:
    """Graphs inside of nodes inside of graphs."""
    graph = b""
    for _ in range(1000):
        graph = _field(1, _field(5, _field(6, graph)))
    return onnx_model(graph)


def many_onnx_tensors() -> bytes:
    return onnx_model(b"".join(_field(5, _field(8, b"%d" % i)) for i in range(190_000)))


#: Those that are well-formed, if odd.
HARMLESS = frozenset({"wide_expression"})
#: Those that are files of safetensors, which ``inspect`` shows; nobody would write them.
PLAIN = frozenset({"empty_tensors", "many_metadata"})

MAKERS: dict[str, Callable[[], bytes]] = {
    maker.__name__: maker
    for maker in (
        *(
            many_keys,
            many_values,
            many_floats,
            many_lists,
            many_objects,
            nested_objects,
            many_strings,
        ),
        *(deep_lists, deep_objects, long_name, long_escapes, quotes, backslashes, blanks),
        *(long_integer, long_fraction, long_exponent, empty_tensors, many_dims, long_shape),
        *(many_metadata, unfolding, repeats, deep_layers, many_layers, many_tensors),
        *(dotted_names, positions, wide_expression, many_statements, many_aliases),
    )
}
