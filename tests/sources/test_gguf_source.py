"""GGUF files as a source: values, granularities, names, metadata."""

import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_files import HEADS, KEYS, container, interleave, values, write_model
from gguf_sources import EVERYTHING, LLAMA, plain, put, ternary

import tpack
from tpack import codec
from tpack.dialects import gguf_blocks, gguf_names, gguf_values
from tpack.dialects.gguf_architectures import ARCHITECTURES
from tpack.errors import InputError, NotTernaryError, UnsupportedError
from tpack.quantize import widen
from tpack.sources import PackedTensor, open_source
from tpack.sources.gguf_reader import GgufFile


def i2_s(shape=(4, 128), scale=0.3, seed=0, name="w"):
    trits = np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)
    none = np.zeros((shape[0], shape[1] // 128), np.float16)
    data = gguf_blocks.pack_blocks(gguf_blocks.I2_S, codec.pack(trits), none).tobytes()
    return (name, shape, 36, data + struct.pack("<f", scale) + bytes(28)), trits * np.float32(scale)


# ---- values


@pytest.mark.parametrize("kind", [Type.TQ1_0, Type.TQ2_0])
@pytest.mark.parametrize("architecture", ["llama", "bitnet", "bitnet-b1.58", "qwen3"])
def test_values_are_those_of_the_gguf_package(tmp_path, kind, architecture):
    path = write_model(tmp_path / "m.gguf", values(), kind, architecture)
    reader = gguf.GGUFReader(path)
    known = ARCHITECTURES.get(architecture)
    with open_source(path) as source:
        assert len(source.tensors) == len(reader.tensors)
        for stored in reader.tensors:
            wanted = gguf.quants.dequantize(stored.data, stored.tensor_type)
            if architecture == "llama" and ".attn_q." in stored.name:
                wanted = undo(wanted, HEADS)
            if architecture == "llama" and ".attn_k." in stored.name:
                wanted = undo(wanted, KEYS)
            name = known.to_hf(stored.name) if known else stored.name
            tensor = source.tensors[name]
            assert tensor.name == name
            assert np.array_equal(plain(tensor), wanted), name
            assert isinstance(tensor, PackedTensor) == (stored.tensor_type == kind)
            assert tensor.nbytes == stored.n_bytes
        assert source.nbytes == path.stat().st_size
        assert source.files == (path,)


def undo(array, heads):
    """The inverse of ``interleave``, by search."""
    order = interleave(np.arange(array.shape[0]), heads)
    return array[np.argsort(order)]


def test_rows_in_any_range(tmp_path):
    path = write_model(tmp_path / "m.gguf", values())
    with open_source(path) as source:
        for name in ("self_attn.q_proj.weight", "self_attn.q_proj.bias"):
            tensor = source.tensors[f"model.layers.0.{name}"]
            whole = plain(tensor)
            read = tensor.dense().read if isinstance(tensor, PackedTensor) else tensor.read
            flat = whole.reshape(-1)
            for start, stop in ((0, 1), (3, 200), (63, 65), (flat.size - 5, flat.size), (7, 7)):
                assert np.array_equal(widen(read(start, stop), tensor.dtype), flat[start:stop])


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (gguf_blocks.TQ1_0, 34),
        (gguf_blocks.TQ2_0, 35),
        (gguf_blocks.Q2_0, 42),
        (gguf_blocks.PQ2_0, 42),
        (gguf_blocks.PQ2_0, 142),
        (gguf_blocks.PTQ1_0, 143),
    ],
)
@pytest.mark.parametrize("shape", [(4, 512), (64, 256), (3, 5, 256), (256,)])
def test_every_type(tmp_path, kind, number, shape):
    size = int(np.prod(shape))
    tensor, wanted = ternary(kind, number, shape)
    other, more = ternary(kind, number, (16, 512), seed=1, name="v")
    path = put(tmp_path, container((), [tensor, other]))
    with open_source(path) as source:
        assert np.array_equal(plain(source.tensors["w"]), wanted)
        assert np.array_equal(plain(source.tensors["v"]), more)
        assert source.tensors["w"].shape == shape
        assert source.tensors["w"].numel == size
        assert source.tensors["w"].dtype == "float16"
        assert any("PrismML" in note for note in source.notes) == (kind is gguf_blocks.PQ2_0)


def test_q2_0_by_size_where_the_last_tensor_ends_the_file(tmp_path):
    tensor, wanted = ternary(gguf_blocks.PQ2_0, 42, (64, 128))
    path = put(tmp_path, container((), [tensor])[: -64 * 34 % 32 or None])
    with open_source(path) as source:
        assert np.array_equal(plain(source.tensors["w"]), wanted)


def test_q2_0_of_neither_size_is_refused(tmp_path):
    tensor, _ = ternary(gguf_blocks.Q2_0, 42, (64, 128))
    for cut in (100, 200):
        path = put(tmp_path, container((), [tensor])[:-cut])
        with pytest.raises(InputError, match="are there"):
            open_source(path)


@pytest.mark.parametrize("shape", [(4, 128), (1, 384)])
def test_i2_s(tmp_path, shape):
    tensor, wanted = i2_s(shape)
    with open_source(put(tmp_path, container((), [tensor]))) as source:
        found = source.tensors["w"]
        assert np.array_equal(plain(found), wanted)
        assert (found.scale_dtype, str(found.granularity)) == ("float32", "tensor")
        assert found.scale.tobytes() == np.float32([0.3]).tobytes()
        assert any("order that x86 has" in warning for warning in source.warnings)


PLAIN = {
    "float32": 0,
    "float16": 1,
    "int8": 24,
    "int16": 25,
    "int32": 26,
    "int64": 27,
    "float64": 28,
}


@pytest.mark.parametrize(("dtype", "number"), PLAIN.items())
def test_plain_types(tmp_path, dtype, number):
    data = np.arange(-6, 6).astype(dtype).reshape(3, 2, 2)
    path = put(tmp_path, container((), [("a", data.shape, number, data.tobytes())]))
    with open_source(path) as source:
        tensor = source.tensors["a"]
        assert (tensor.dtype, tensor.shape) == (dtype, (3, 2, 2))
        assert np.array_equal(tensor.read(0, 12), data.reshape(-1))
        assert b"".join(map(bytes, tensor.chunks())) == data.tobytes()


def test_bfloat16_scalars_and_empty_tensors(tmp_path):
    tensors = [("b", (2,), 30, b"\x80\x3f\x00\xc0"), ("s", (), 0, b"abcd"), ("e", (0, 2), 0, b"")]
    with open_source(put(tmp_path, container((), tensors))) as source:
        assert plain(source.tensors["b"]).tolist() == [1.0, -2.0]
        assert source.tensors["s"].shape == ()
        assert source.tensors["e"].shape == (0, 2)


# ---- granularity


@pytest.mark.parametrize(
    ("kind", "number", "scales", "wanted"),
    [
        (gguf_blocks.TQ2_0, 35, 0.5, "tensor"),
        (gguf_blocks.TQ2_0, 35, [[0.5], [0.25], [1], [2]], "row"),
        (gguf_blocks.TQ2_0, 35, [[0.5, 1], [1, 1], [1, 1], [1, 1]], "group:256"),
        (gguf_blocks.TQ2_0, 35, [[0.5, -0.5]], "group:256"),
        (gguf_blocks.Q2_0, 42, [[1, 1, 1, 1, 2, 2, 2, 2]], "group:256"),
        (gguf_blocks.Q2_0, 42, [[1, 1, 3, 3, 2, 2, 2, 2]], "group:128"),
        (gguf_blocks.Q2_0, 42, [[1, 5, 3, 3, 2, 2, 2, 2]], "group:64"),
        (gguf_blocks.PTQ1_0, 143, [[1, 1, 2, 2]], "group:256"),
        (gguf_blocks.PTQ1_0, 143, [[1, 1, 2, 3]], "group:128"),
        (gguf_blocks.TQ1_0, 34, [[0.0, -0.0]], "group:256"),
    ],
)
def test_the_coarsest_granularity_that_is_exact(tmp_path, kind, number, scales, wanted):
    tensor, values_ = ternary(kind, number, (4, 512), scales)
    with open_source(put(tmp_path, container((), [tensor]))) as source:
        found = source.tensors["w"]
        assert str(found.granularity) == wanted
        assert found.scale.shape == found.granularity.shape((4, 512), 1)
        assert np.array_equal(plain(found), values_)


# ---- names


@pytest.mark.parametrize(("rows", "heads"), [(8, 1), (16, 2), (96, 3), (2, 1)])
def test_the_order_of_rows(rows, heads):
    order = gguf_names.RowOrder(rows // heads)
    inside = interleave(np.arange(rows), heads)
    assert np.array_equal(order.in_original(0, rows), inside)
    assert np.array_equal(inside[order.in_gguf(0, rows)], np.arange(rows))


def test_rows_that_fit_no_heads(tmp_path):
    tensor, _ = ternary(gguf_blocks.TQ2_0, 35, (4, 256), name="blk.0.attn_q.weight")
    with pytest.raises(InputError, match="4 rows, expected an even number for each of 4 heads"):
        open_source(put(tmp_path, container(LLAMA, [tensor])))


@pytest.mark.parametrize("metadata", [LLAMA[:1], (LLAMA[0], (LLAMA[1][0], "string", "4")), ()])
def test_without_heads_names_stay(tmp_path, metadata):
    tensor, wanted = ternary(gguf_blocks.TQ2_0, 35, (64, 256), name="blk.0.attn_q.weight")
    with open_source(put(tmp_path, container(metadata, [tensor]))) as source:
        assert np.array_equal(plain(source.tensors["blk.0.attn_q.weight"]), wanted)


def test_two_tensors_that_become_one(tmp_path):
    a, _ = ternary(gguf_blocks.TQ2_0, 35, name="output.weight")
    b, _ = ternary(gguf_blocks.TQ2_0, 35, name="lm_head.weight")
    with pytest.raises(InputError, match=r"'lm_head\.weight', which another tensor has"):
        open_source(put(tmp_path, container(LLAMA, [a, b])))


def test_notes(tmp_path):
    path = put(tmp_path, container(LLAMA, [("blk.0.ffn_up.scale", (1,), 0, bytes(4))]))
    with open_source(path) as source:
        assert any("multiply outputs" in note for note in source.notes)


@pytest.mark.parametrize("key", ["prism.hadamard.mode", "llama.quarot", "x.rotated_weights"])
@pytest.mark.parametrize(
    ("kind", "data"), [("uint32", 1), ("bool", 1), ("string", "R1"), ("array", ("int8", [1]))]
)
def test_rotated_weights_are_refused(tmp_path, key, kind, data):
    path = put(tmp_path, container([(key, kind, data)], [("a.weight", (1,), 0, bytes(4))]))
    with pytest.raises(UnsupportedError, match=f"rotated basis: its metadata says {key}"):
        open_source(path)
    path = put(tmp_path, container([(key, "bool", 0)], [("a.weight", (1,), 0, bytes(4))]))
    open_source(path).resources.close()


@pytest.mark.parametrize(
    ("architecture", "number", "rounds"),
    [
        ("bitnet", 35, True),
        ("bitnet-b1.58", 35, True),
        ("bitnet-25", 1, True),
        ("llama", 36, True),
        ("llama", 35, False),
        ("qwen3", 35, False),
    ],
)
def test_layers_that_round_their_inputs(tmp_path, architecture, number, rounds):
    size = {35: 66 * 256, 36: 256 * 64 + 32, 1: 256 * 256 * 2}[number]
    embedding = ("token_embd.weight", (4, 256), 1, bytes(2048))
    tensors = [("blk.0.ffn_up.weight", (256, 256), number, bytes(size)), embedding]
    head = [("general.architecture", "string", architecture)]
    with open_source(put(tmp_path, container(head, tensors))) as source:
        (weight,) = (name for name in source.tensors if "up" in name)
        assert source.int8_inputs == ({weight} if rounds else set())
        assert any("round their inputs" in note for note in source.notes) == rounds


def test_bitnet_in_gguf_gives_bit_linear(tmp_path):
    from tpack.build import program_of

    path = tmp_path / "a.gguf"
    write_model(path, values(), Type.TQ2_0, "bitnet-b1.58")
    tpack.convert(path, tmp_path / "a.safetensors")
    layers = {p.layer for one in program_of(tpack.load(tmp_path / "a.safetensors")).layers
              for p in one.params if p.layer}  # fmt: skip
    assert "BitLinear" in layers
    assert "TernaryLinear" not in layers


# ---- metadata


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_survives_as_json(tmp_path, version):
    path = put(tmp_path, container(EVERYTHING, [], version=version))
    with GgufFile(path) as file:
        assert list(file.metadata) == [key for key, _, _ in EVERYTHING]
        for (_, kind, data), value in zip(EVERYTHING, file.metadata.values(), strict=True):
            again = gguf_values.from_json(gguf_values.to_json(value))
            wanted = container([("k", kind, data)], [])[24 + 9 :].rstrip(b"\0")
            assert gguf_values.encode(again).rstrip(b"\0") == wanted
            assert again.kind == kind


def test_metadata_reaches_the_output(tmp_path):
    path = write_model(tmp_path / "m.gguf", values())
    tpack.convert(path, tmp_path / "m.safetensors")
    with tpack.container.Checkpoint(tmp_path / "m.safetensors") as file:
        assert (
            "Ġc"
            in tpack.container.parse_json(file.metadata["gguf"].encode(), "R7", "")["metadata"][5][
                2
            ][1]
        )
        assert set(file.document.metadata) == {"gguf"}
    assert tpack.verify(tmp_path / "m.safetensors", against=path).ok


def test_a_changed_file_is_found(tmp_path):
    path = write_model(tmp_path / "m.gguf", values())
    tpack.convert(path, tmp_path / "m.safetensors")
    write_model(path, values(1))
    assert not tpack.verify(tmp_path / "m.safetensors", against=path).ok


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        ["uint8"],
        ["uint8", 256],
        ["uint8", 1.5],
        ["uint8", True],
        ["uint8", "0102"],
        ["uint8", "xy"],
        ["float32", None],
        ["nothing", 1],
        ["string", 3],
        ["string", {"hex": 3}],
        ["string", {}],
        ["array", ["uint8", 3]],
        ["array", ["nothing", []]],
        ["array", ["uint8", [None]]],
        ["array", ["array", [["array", [["array", [["array", [["uint8", []]]]]]]]]]],
    ],
)
def test_json_that_is_no_value(data):
    with pytest.raises(InputError, match="not a value of GGUF metadata"):
        gguf_values.from_json(data)


# ---- dispatch


@pytest.mark.parametrize("name", ["m.gguf", "m.bin", "model"])
def test_gguf_by_suffix_or_by_content(tmp_path, name):
    tensor, wanted = ternary(gguf_blocks.TQ2_0, 35)
    with open_source(put(tmp_path, container((), [tensor]), name)) as source:
        assert np.array_equal(plain(source.tensors["w"]), wanted)


def test_reading_needs_neither_torch_nor_gguf(tmp_path):
    path = write_model(tmp_path / "m.gguf", values())
    code = (
        "import sys\nfrom tpack.conversion import convert\n"
        f"convert({str(path)!r}, {str(tmp_path / 'o.safetensors')!r})\n"
        "print([name for name in ('torch', 'gguf') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- blocks of more than two bits beside ternary ones


def mixed(path, kind, name, shape=(8, 256), ternary=True):
    """A file with blocks of random bytes, and the values that the gguf package gives them."""
    rng = np.random.default_rng(5)
    weights, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rows = rng.integers(0, 256, (shape[0], shape[1] // weights * nbytes), dtype=np.uint8)
    if kind == Type.Q6_K:  # scales that are numbers
        rows[:, 208:210] = np.frombuffer(np.float16(0.25).tobytes(), dtype=np.uint8)
    else:
        blocks = rows.reshape(-1, nbytes)
        blocks[:, :2] = np.frombuffer(np.float16(0.25).tobytes(), dtype=np.uint8)
    tensors = [(name, shape, int(kind), rows.tobytes())]
    if ternary:
        tensors.append(("up", (64, 256), 35, (b"\x55\x68" * 32 + b"\x00\x38") * 64))
    path.write_bytes(container((), tensors))
    return gguf.quants.dequantize(rows, kind)


@pytest.mark.parametrize("options", [{}, {"exclude": ["*head*"]}, {"keep_dtype": "f32"}])
@pytest.mark.parametrize("name", ["head.weight", "ffn.head_gate.weight"])
@pytest.mark.parametrize("kind", [Type.Q6_K, Type.Q8_0, Type.Q4_0, Type.IQ4_NL, Type.Q4_K])
def test_other_blocks_are_kept_byte_for_byte(kind, name, options, tmp_path):
    wanted = mixed(tmp_path / "a.gguf", kind, name)
    report = tpack.convert(tmp_path / "a.gguf", tmp_path / "out", **options)
    assert {t.name: t.action for t in report.tensors} == {name: "kept", "up": "packed"}
    assert np.array_equal(tpack.unpack(tmp_path / "out")[name].numpy(), wanted)
    assert any(f"{name}: {kind.name}, kept byte for byte" in note for note in report.notes)
    assert tpack.verify(tmp_path / "out", tmp_path / "a.gguf").ok
    if name == "ffn.head_gate.weight" and "exclude" not in options:  # a weight
        assert any(f"is {kind.name} of GGUF, and not ternary" in w for w in report.warnings)
    with tpack.container.Checkpoint(tmp_path / "out") as file:
        entry = file.entries[name]
        assert entry.dtype == ("float32" if "keep_dtype" in options else "uint8")
        if entry.dtype == "uint8":
            stored = np.frombuffer(file.read(name, 0, entry.nbytes), np.uint8).reshape(entry.shape)
            assert np.array_equal(gguf.quants.dequantize(stored, kind), wanted)
            assert np.array_equal(stored, gguf.GGUFReader(tmp_path / "a.gguf").tensors[0].data)


def test_kept_blocks_go_back_into_gguf_in_the_order_of_their_rows(tmp_path):
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (64, 34 * 8), dtype=np.uint8)
    rows.reshape(-1, 34)[:, :2] = np.frombuffer(np.float16(0.25).tobytes(), np.uint8)
    q8 = ("blk.0.attn_q.weight", (64, 256), 8, rows.tobytes())
    up, _ = ternary(gguf_blocks.TQ2_0, 35, (64, 256), name="blk.0.ffn_up.weight")
    path = put(tmp_path, container(LLAMA, [q8, up]))
    tpack.convert(path, tmp_path / "out")
    assert tpack.verify(tmp_path / "out", path).ok
    name = "model.layers.0.self_attn.q_proj.weight"
    wanted = undo(gguf.quants.dequantize(rows, Type.Q8_0), HEADS)
    assert np.array_equal(tpack.unpack(tmp_path / "out")[name].numpy(), wanted)
    tpack.export(tmp_path / "out", "gguf", tmp_path / "again.gguf")
    for before, after in zip(
        gguf.GGUFReader(path).tensors, gguf.GGUFReader(tmp_path / "again.gguf").tensors, strict=True
    ):
        assert (before.name, before.tensor_type) == (after.name, after.tensor_type)
        assert np.array_equal(before.data, after.data)
    with pytest.raises(UnsupportedError, match=r"blocks of GGUF \(Q8_0\), which hf-bitnet has no"):
        tpack.export(tmp_path / "out", "hf-bitnet", tmp_path / "hf")


def test_ternary_values_in_other_blocks_are_packed(tmp_path):
    codes = np.random.default_rng(2).integers(-1, 2, (64, 8, 32)).astype(np.int8)
    scale = np.broadcast_to(np.frombuffer(np.float16(0.5).tobytes(), np.int8), (64, 8, 2))
    data = np.concatenate((scale, codes), axis=2).tobytes()
    path = put(tmp_path, container((), [("up", (64, 256), 8, data)]))
    report = tpack.convert(path, tmp_path / "out")
    assert [(t.action, t.method) for t in report.tensors] == [("packed", "exact")]


def test_other_blocks_alone_are_no_masters(tmp_path):
    wanted = mixed(tmp_path / "a.gguf", Type.Q8_0, "ffn.weight", ternary=False)
    with pytest.raises(NotTernaryError, match=r"ffn\.weight' is Q8_0 of GGUF, and not tern"):
        tpack.convert(tmp_path / "a.gguf", tmp_path / "out")
    for options in ({"quantize": "absmean"}, {"include": ["ffn*"]}):
        report = tpack.convert(tmp_path / "a.gguf", tmp_path / "out", force=True, **options)
        assert [t.action for t in report.tensors] == ["quantized"]
    tpack.convert({"ffn.weight": torch.from_numpy(wanted)}, tmp_path / "b")
    found, plain = (tpack.unpack(tmp_path / file)["ffn.weight"] for file in ("out", "b"))
    assert torch.equal(found, plain)


def test_trits_in_blocks_of_eight_bits_are_trits(tmp_path):
    codes = np.random.default_rng(0).integers(-1, 2, (16, 8, 32)).astype(np.int8) * 127
    scales = np.random.default_rng(1).random((16, 8, 1)).astype(np.float16)
    blocks = np.concatenate((scales.view(np.uint8).reshape(16, 8, 2), codes.view(np.uint8)), axis=2)
    (tmp_path / "a.gguf").write_bytes(container((), [("up", (16, 256), 8, blocks.tobytes())]))
    report = tpack.convert(tmp_path / "a.gguf", tmp_path / "out", exact=True)
    assert [(t.action, t.scale) for t in report.tensors] == [("packed", "group:32")]
    wanted = (scales.astype(np.float32) * codes).reshape(16, 256)
    assert np.array_equal(tpack.unpack(tmp_path / "out")["up"].numpy(), wanted)


def test_rows_of_attention_come_in_their_own_order(tmp_path):
    """As those of plain tensors do."""
    rng = np.random.default_rng(2)
    name, other = "blk.0.attn_q.weight", "blk.0.ffn_up.weight"
    values = rng.integers(-127, 128, (64, 32)).astype(np.float32)
    blocks = np.concatenate(
        (np.full((64, 2), [0, 60], dtype=np.uint8), values.astype(np.int8).view(np.uint8)), axis=1
    )
    plain = [(name, (64, 32), 0, values.tobytes()), (other, (64, 32), 0, values.tobytes())]
    coded = [(name, (64, 32), 8, blocks.tobytes()), (other, (64, 32), 8, blocks.tobytes())]
    found = []
    for file, tensors in (("plain", plain), ("coded", coded)):
        (tmp_path / f"{file}.gguf").write_bytes(container(LLAMA, tensors))
        with open_source(tmp_path / f"{file}.gguf") as source:
            found.append({n: t.read(0, t.numel) for n, t in source.tensors.items()})
            found[-1] |= {f"{n} part": t.read(70, 333) for n, t in source.tensors.items()}
    assert found[0].keys() == found[1].keys()
    for key, wanted in found[0].items():
        assert np.array_equal(found[1][key], wanted)
    query, up, *_ = found[1].values()
    assert not np.array_equal(query, up)
