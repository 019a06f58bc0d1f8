"""Checkpoints as they are opened: a file, a folder of shards, and what does not belong together."""

# ruff: noqa: PTH208 -- listdir gives names, which is what is compared

import json
import os
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from tpack.codec import Scale, pack, unpack
from tpack.container import Checkpoint, Document, Piece, TernaryEntry, is_checkpoint, write_tensors
from tpack.container.document import Shard, program_digest
from tpack.container.index import write_index
from tpack.container.reader import stored_dtype
from tpack.container.writer import write_checkpoint
from tpack.errors import FormatError, InputError, LayerDefError, NotTernaryError
from tpack.layerdef import LayerDef, Param, Program, Unspecified

HEX = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def open_files():
    """Fails where a test leaves files open."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


def numbers(name, *values):
    return Piece.of(name, "int64", (len(values),), np.array(values))


def write(path, *pieces, tensors=(), metadata=None, digests=(), program=None, **fields):
    """A checkpoint with these pieces, all kept but those of the weights ``tensors``."""
    described = {f"{name}_{part}" for name in dict(tensors) for part in ("packed", "scale")}
    kept = dict.fromkeys((piece.name for piece in pieces if piece.name not in described), "")
    document = Document(program, dict(tensors), kept, metadata=dict(digests), **fields)
    write_checkpoint(path, document, pieces, metadata=metadata)
    return path


def program_of(*names):
    params = [Param(name, "Buffer", [2], dtype="int64") for name in names]
    return Program([LayerDef("L", params, [Unspecified()])], "L")


PROGRAM = program_of("a", "b", "c")
DIGEST = program_digest(PROGRAM)
#: The shards of a model by file; their numbers are not in the order of the names.
SHARDS = {
    "z.safetensors": (Shard(1, 3, DIGEST), PROGRAM, "a"),
    "y.safetensors": (Shard(2, 3, DIGEST), None, "b"),
    "x.safetensors": (Shard(3, 3, DIGEST), None, "c"),
}


def folder_of(folder, *, tie=True, **changed):
    """A folder of shards, some of them changed; ``z=(shard, program, name)``."""
    shards = SHARDS | {f"{name}.safetensors": said for name, said in changed.items()}
    shards = {name: said for name, said in shards.items() if said is not None}
    weight_map = {}
    for i, (file, (shard, program, name)) in enumerate(shards.items()):
        aliases = {f"alias of {name}": name}
        write(folder / file, numbers(name, i, 7), program=program, shard=shard, aliases=aliases)
        weight_map[name] = file
    path = folder / "model.safetensors.index.json"
    if tie:
        write_index(path, weight_map, {"total_size": 48})
    else:
        path.write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refusal(path, error=FormatError):
    with pytest.raises(error) as caught:
        Checkpoint(path)
    assert caught.value.file == str(path)
    return getattr(caught.value, "rule", None), caught.value.message


@pytest.mark.parametrize("tie", [True, False])
def test_a_folder_is_read_in_the_order_of_its_shards(tmp_path, tie):
    with Checkpoint(folder_of(tmp_path, tie=tie)) as file:
        assert [part.path.name for part in file.files] == list(SHARDS)
        assert file.path == tmp_path
        assert file.index.files == sorted(SHARDS)
        assert sorted(file.entries) == ["a", "b", "c"]
        for i, name in enumerate("abc"):
            assert file.array(name).tolist() == [i, 7]
            assert bytes(file.read(name, 8)) == np.array([7]).tobytes()
            assert bytes(file.read(name, 0, 1)) == bytes([i])
            assert b"".join(file.chunks(name)) == np.array([i, 7]).tobytes()
        document = file.document
        assert (document.program, document.shard, dict(document.tensors)) == (PROGRAM, None, {})
        assert list(document.kept) == ["a", "b", "c"]
        assert document.kept["b"] == sha256(np.array([1, 7]).tobytes()).hexdigest()
        assert document.aliases == {f"alias of {name}": name for name in "abc"}
        assert file.metadata == file.files[0].metadata
        assert file.nbytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
        assert file.digest_holds


def test_one_damaged_digest_of_several(tmp_path):
    folder_of(tmp_path, tie=False)
    path = tmp_path / "y.safetensors"
    text = path.read_bytes()
    at = text.index(rb"\"sha256\":\"") + 13
    path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
    with Checkpoint(tmp_path) as file:
        assert not file.digest_holds


@pytest.mark.parametrize(
    ("changed", "numbers"),
    [
        ({"y": None}, "1, 3"),
        ({"z": None}, "2, 3"),
        ({"x": None}, "1, 2"),
        ({"y": (Shard(1, 3, DIGEST), None, "b")}, "1, 1, 3"),
    ],
)
def test_shards_that_are_missing_or_doubled(tmp_path, changed, numbers):
    message = "expected 1 to 3. Shards are missing, or of several models."
    assert refusal(folder_of(tmp_path, **changed)) == (
        "R19",
        f"holds the shards {numbers}, {message}",
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": (None, None, "b")}, "y.safetensors is a whole checkpoint, not a shard."),
        ({"x": (None, None, "c")}, "x.safetensors is a whole checkpoint, not a shard."),
        ({"x": (Shard(3, 4, DIGEST), None, "c")}, "x.safetensors belongs to another model."),
        ({"y": (Shard(2, 4, DIGEST), None, "b")}, "y.safetensors belongs to another model."),
        ({"y": (Shard(2, 3, HEX), None, "b")}, "y.safetensors belongs to another model."),
        ({"z": (Shard(1, 3, HEX), PROGRAM, "a")}, "z.safetensors belongs to another model."),
        ({"y": (Shard(2, 3, DIGEST), PROGRAM, "b")}, "y.safetensors has a program of its own."),
        ({"z": (Shard(1, 3, DIGEST), None, "a")}, "z.safetensors belongs to another model."),
    ],
)
def test_shards_that_do_not_belong_together(tmp_path, changed, message):
    assert refusal(folder_of(tmp_path, **changed)) == ("R19", message)


def test_a_folder_without_a_program(tmp_path):
    none = program_digest(None)
    shards = {name: (Shard(i, 3, none), None, key)
              for i, (name, key) in enumerate(zip("zyx", "abc", strict=True), 1)}  # fmt: skip
    with Checkpoint(folder_of(tmp_path, **shards)) as file:
        assert file.document.program is None


@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_the_program_describes_the_whole_folder(tmp_path, names):
    program = program_of(*names)
    digest = program_digest(program)
    changed = {name.partition(".")[0]: (replace(shard, program_sha256=digest), own and program, key)
               for name, (shard, own, key) in SHARDS.items()}  # fmt: skip
    error = FormatError if names == "ab" else LayerDefError
    refusal(folder_of(tmp_path, **changed), error)


def test_every_tensor_is_where_the_index_says(tmp_path):
    folder_of(tmp_path, tie=False)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"a": "z.safetensors", "b": "y.safetensors", "c": "x.safetensors"}
    for change, name in (
        ({"c": "y.safetensors", "d": "x.safetensors"}, "c"),
        ({"d": "x.safetensors"}, "d"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map | change}))
        with pytest.raises(FormatError) as caught:
            Checkpoint(tmp_path)
        assert (caught.value.rule, caught.value.tensor) == ("R19", name)
        assert caught.value.message == "is not where model.safetensors.index.json says."
    index.write_text(json.dumps({"weight_map": weight_map | {"n" * 300: "x.safetensors"}}))
    with pytest.raises(FormatError) as caught:
        Checkpoint(tmp_path)
    assert caught.value.tensor == "n" * 200


def test_an_index_of_another_conversion(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "y.safetensors").unlink()
    write(tmp_path / "y.safetensors", numbers("b", 9, 9), shard=SHARDS["y.safetensors"][0])
    rule, message = refusal(tmp_path)
    assert rule == "R20"
    assert message.startswith("y.safetensors is not the shard that model.safetensors.index.json")


def test_a_folder_of_one_file(tmp_path):
    with pytest.raises(InputError, match="holds no tpack checkpoint") as caught:
        Checkpoint(tmp_path)
    assert caught.value.file == str(tmp_path)
    write(tmp_path / "model.safetensors", numbers("a", 1, 2))
    with Checkpoint(tmp_path) as file:
        assert file.index is None
        assert file.array("a").tolist() == [1, 2]


def test_a_shard_alone_is_no_checkpoint(tmp_path):
    path = write(tmp_path / "x", numbers("a", 1), shard=Shard(1, 2, program_digest(None)))
    message = "holds the shards 1, expected 1 to 2. Shards are missing, or of several models."
    assert refusal(path) == ("R19", message)
    path = write(tmp_path / "y", numbers("a", 1), shard=Shard(1, 1, program_digest(None)))
    with Checkpoint(path) as file:
        assert file.document.shard is None


# ---- one file


def test_other_metadata_has_digests_too(tmp_path):
    digests = {"m": sha256("é".encode()).hexdigest(), "n": sha256(b"").hexdigest()}
    for name, metadata, holds in (
        ("good", {"m": "é", "n": ""}, True),
        ("more", {"m": "é", "n": "", "o": "not covered"}, True),
        ("other", {"m": "e", "n": ""}, False),
        ("less", {"m": "é"}, False),
    ):
        path = write(tmp_path / name, numbers("a", 1), metadata=metadata, digests=digests)
        with Checkpoint(path) as file:
            assert file.digest_holds == holds
            assert {key: file.metadata[key] for key in metadata} == metadata


def test_large_digits_of_escapes_do_not_hold(tmp_path):
    path = write(tmp_path / "x", numbers("é", 1))
    path.write_bytes(path.read_bytes().replace(rb'"\u00e9":{', rb'"\u00E9":{'))
    with Checkpoint(path) as file:
        assert not file.digest_holds


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            b'"tpack"',
            b'"tpick"',
            "is a plain safetensors file, expected a tpack checkpoint. Convert",
        ),
        (b'"pt"', b'"tf"', "has format 'tf', expected 'pt'."),
        (b'"format"', b'"farmat"', "has format None, expected 'pt'."),
    ],
)
def test_safetensors_files_that_are_no_checkpoints(tmp_path, old, new, message):
    path = write(tmp_path / "x", numbers("a", 1))
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    rule, found = refusal(path)
    assert rule == "R7"
    assert found.startswith(message)
    assert is_checkpoint(path) == (old != b'"tpack"')


def test_is_checkpoint(tmp_path):
    assert is_checkpoint(write(tmp_path / "x", numbers("a", 1)))
    write_tensors(tmp_path / "y", [numbers("a", 1)])
    assert not is_checkpoint(tmp_path / "y")
    with pytest.raises(InputError):
        is_checkpoint(tmp_path / "gone")


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("bool", "uint8"), ("float8_e4m3fn", "uint8"), ("float8_e8m0fnu", "uint8"),
     ("bfloat16", "uint16"), ("float16", "float16"), ("int8", "int8"), ("complex64", "complex64")],
)  # fmt: skip
def test_stored_dtypes(dtype, stored):
    assert stored_dtype(dtype) == stored


# ---- weights


def weight(rows, columns, layout="t2"):
    """A weight of random trits: the trits, its entry, and its pieces."""
    trits = np.random.default_rng(rows).integers(-1, 2, (rows, columns)).astype(np.int8)
    packed = pack(trits, layout)
    entry = TernaryEntry((rows, columns), 1, layout, "row", "exact", "float32", 0.0, HEX, HEX)
    scale = np.arange(rows, dtype=np.float16).reshape(rows, 1)
    pieces = [
        Piece.of("w_packed", "uint8", packed.shape, packed),
        Piece.of("w_scale", "float16", scale.shape, scale),
    ]
    return trits, entry, pieces


@pytest.mark.parametrize(
    ("rows", "columns", "layout", "firsts"),
    [
        (7, 1_200_000, "t2", [0, 3, 6]),
        (3, 4 << 20, "t2", [0, 1, 2]),
        (2, (4 << 20) + 4, "t2", [0, 1]),
        (4, 2 << 20, "t2", [0, 2]),
        (5, 7, "t5", [0]),
    ],
)
def test_blocks_of_a_weight(tmp_path, rows, columns, layout, firsts):
    trits, entry, pieces = weight(rows, columns, layout)
    path = write(tmp_path / "x", *pieces, tensors={"w": entry})
    with Checkpoint(path) as file:
        blocks = list(file.packed_blocks("w"))
        assert [first for first, _ in blocks] == firsts
        packed = np.concatenate([block for _, block in blocks])
        assert np.array_equal(unpack(packed, columns, layout), trits)
        for first, block in file.trit_blocks("w"):
            assert np.array_equal(block, trits[first : first + len(block)])
        assert [name for name, _ in file.ternary()] == ["w"]


def test_a_weight_of_one_dim_is_a_row(tmp_path):
    trits, entry, pieces = weight(1, 7)
    entry = replace(entry, shape=(7,), split=0)
    pieces = [replace(piece, shape=piece.shape[1:]) for piece in pieces]
    with Checkpoint(write(tmp_path / "x", *pieces, tensors={"w": entry})) as file:
        ((first, block),) = file.trit_blocks("w")
    assert (first, block.tolist()) == (0, trits.tolist())


def test_weights_of_several_shards(tmp_path):
    none = program_digest(None)
    weight_map = {}
    for number, name in enumerate("wv", 1):
        _, entry, pieces = weight(number, 5)
        pieces = [replace(piece, name=piece.name.replace("w", name)) for piece in pieces]
        shard = Shard(number, 2, none)
        write(tmp_path / f"{name}.safetensors", *pieces, tensors={name: entry}, shard=shard)
        weight_map |= {piece.name: f"{name}.safetensors" for piece in pieces}
    write_index(tmp_path / "model.safetensors.index.json", weight_map, {})
    with Checkpoint(tmp_path) as file:
        assert [(name, entry.shape) for name, entry in file.ternary()] == [
            ("v", (2, 5)),
            ("w", (1, 5)),
        ]
        assert [len(block) for name in "wv" for _, block in file.trit_blocks(name)] == [1, 2]


def test_a_scale_and_its_granularity(tmp_path):
    _, entry, pieces = weight(3, 5)
    with Checkpoint(write(tmp_path / "x", *pieces, tensors={"w": entry})) as file:
        scale, dtype, granularity = file.scale("w")
    assert scale.tolist() == [[0.0], [1.0], [2.0]]
    assert (dtype, granularity) == ("float16", Scale.parse("row"))


def test_weights_come_by_name(tmp_path):
    _, entry, pieces = weight(3, 5)
    more = [replace(piece, name=piece.name.replace("w", "v")) for piece in pieces]
    path = write(tmp_path / "x", *pieces, *more, tensors={"w": entry, "v": entry})
    with Checkpoint(path) as file:
        assert [name for name, _ in file.ternary()] == ["v", "w"]


def test_a_damaged_byte_is_named_with_its_file_and_tensor(tmp_path):
    _, entry, (packed, scale) = weight(2, 4)
    packed = Piece.of("w_packed", "uint8", (2, 1), b"\x55\xff")
    path = write(tmp_path / "x", packed, scale, tensors={"w": entry})
    with Checkpoint(path) as file, pytest.raises(NotTernaryError) as caught:
        list(file.trit_blocks("w"))
    assert (caught.value.file, caught.value.tensor) == (str(path), "w_packed")


def test_a_checkpoint_is_closed_at_its_end(tmp_path):
    with Checkpoint(folder_of(tmp_path)) as file:
        handles = [part.fileno() for part in file.files]
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
