"""Tensors of elements of less than a byte: carried bit for bit, never taken for weights."""

import importlib.util
import json
import warnings

import gguf_exports
import numpy as np
import pytest
import torch
from safetensors import deserialize, safe_open

import tpack
from tpack.dtypes import BY_CODE
from tpack.errors import FormatError, InputError, NotTernaryError, UnsupportedError
from tpack.sources import open_source

RNG = np.random.default_rng(0)
TRITS = (RNG.integers(-1, 2, (16, 64)) * 0.5).astype(np.float32)
TERNARY = {"down.weight": ("F32", TRITS.shape, TRITS.tobytes())}
MASTER = {"down.weight": ("F32", (16, 64), RNG.normal(size=1024).astype(np.float32).tobytes())}
#: What is less than a byte, and the scales of one: code, shape, bytes.
PACKED = {
    "up.weight": ("F4", (16, 64), RNG.bytes(512)),
    "up.weight_scale": ("F8_E8M0", (16, 2), RNG.bytes(32)),
    "gate.weight": ("F6_E2M3", (4, 8), RNG.bytes(24)),
    "last.weight": ("F6_E3M2", (4, 2), RNG.bytes(6)),
    "zero.weight": ("F4", (0, 4), b""),
}
#: The dtype and the shape of the tensors that torch holds them in.
HELD = {
    "up.weight": (torch.float4_e2m1fn_x2, (16, 32)),
    "up.weight_scale": (torch.float8_e8m0fnu, (16, 2)),
    "gate.weight": (torch.uint8, (4, 6)),
    "last.weight": (torch.uint8, (6,)),  # no row of two elements ends with a byte
    "zero.weight": (torch.float4_e2m1fn_x2, (0, 2)),
}


def write(path, tensors):
    """Write a safetensors file by hand: the library's writers have no elements of six bits."""
    header, data = {}, b""
    for name, (code, shape, content) in tensors.items():
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": place}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def content(path):
    """What the library reads of a file."""
    found = deserialize(path.read_bytes())
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in found}


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def damaged(name, at, mask):
    """The tensors with some bits of one byte turned."""
    code, shape, data = PACKED[name]
    data = bytes(byte ^ mask if i == at else byte for i, byte in enumerate(data))
    return TERNARY | PACKED | {name: (code, shape, data)}


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "in.safetensors", TERNARY | PACKED)


@pytest.fixture
def packed(tmp_path, source):
    tpack.convert(source, tmp_path / "out.safetensors")
    return tmp_path / "out.safetensors"


def test_beside_ternary_weights_they_are_kept(source, packed, tmp_path):
    found = content(packed)
    assert {name: found[name] for name in PACKED} == PACKED
    sizes = [BY_CODE[code].bits for code, _, _ in found.values()]
    with safe_open(packed, "pt") as file:
        assert [BY_CODE[file.get_slice(n).get_dtype()].bits for n in file.offset_keys()] == sorted(
            sizes, reverse=True
        )
    report = tpack.convert(source, tmp_path / "again.safetensors")
    kept = {row.name: row.bpw for row in report.tensors if row.action == "kept"}
    assert kept == {name: BY_CODE[code].bits for name, (code, _, _) in PACKED.items()}
    six, four = report.warnings
    assert "packed by MXFP4 or NVFP4, and kept bit for bit" in four
    assert (
        "up.weight looks packed by MXFP4 or NVFP4: float4_e2m1fn beside 'up.weight_scale'" in four
    )
    assert "gate.weight looks packed by MXFP6: float6_e2m3fn." in six


def test_among_masters_they_are_refused_unless_they_are_excluded(tmp_path):
    path, out = write(tmp_path / "in.safetensors", MASTER | PACKED), tmp_path / "out.safetensors"
    with pytest.raises(NotTernaryError, match="looks packed by MXFP6: float6_e3m2fn"):
        tpack.convert(path, out)
    assert not out.exists()
    tpack.convert(path, out, exclude=["up*", "gate*", "last*", "zero*"])
    found = content(out)
    assert {name: found[name] for name in PACKED} == PACKED
    assert tpack.verify(out, path).ok
    write(path, PACKED)
    with pytest.raises(NotTernaryError, match="looks packed by"):
        tpack.convert(path, out, force=True)
    with pytest.raises(InputError, match="5 excluded"):
        tpack.convert(path, out, force=True, exclude=["*"])


@pytest.mark.parametrize(
    ("code", "shape", "message"),
    [
        ("U2", (4,), "has dtype 'U2'.*No reader of safetensors"),
        ("F4", (2,), None),
        ("F4", (1,), "whole"),
    ],
)
def test_what_no_reader_opens(tmp_path, code, shape, message):
    path = write(tmp_path / "in.safetensors", TERNARY | {"x": (code, shape, b"\x12")})
    if message is None:
        tpack.convert(path, tmp_path / "out.safetensors", exclude=["x"])
        return
    with pytest.raises(FormatError, match=message) as caught:
        tpack.convert(path, tmp_path / "out.safetensors", exclude=["*"])
    assert caught.value.tensor == "x"
    with pytest.raises(Exception, match="deserializing"):
        deserialize(path.read_bytes())


def test_verification_names_the_element_and_its_bytes(source, packed, tmp_path):
    assert tpack.verify(packed).ok
    assert tpack.verify(packed, source).ok
    write(tmp_path / "other.safetensors", damaged("up.weight", 37, 0x30))
    was = PACKED["up.weight"][2][37]
    (problem,) = tpack.verify(packed, tmp_path / "other.safetensors").problems
    assert f"at index (1, 11) it has the byte {was:02x}, the source has the byte" in problem
    assert problem.endswith("1 of 1024 values differ.")
    write(tmp_path / "other.safetensors", damaged("gate.weight", 4, 0x01))
    was = PACKED["gate.weight"][2][3:5].hex()
    (problem,) = tpack.verify(packed, tmp_path / "other.safetensors").problems
    assert f"at index (0, 5) it has the bytes {was}" in problem
    assert problem.endswith("1 of 32 values differ.")
    data = bytearray(packed.read_bytes())
    data[-1] ^= 1
    packed.write_bytes(data)
    assert not tpack.verify(packed).ok


def test_diff_counts_elements(packed, tmp_path):
    write(tmp_path / "b.safetensors", damaged("gate.weight", 4, 0xFF))
    tpack.convert(tmp_path / "b.safetensors", tmp_path / "b.tpack.safetensors")
    found = {t.name: t for t in tpack.diff(packed, tmp_path / "b.tpack.safetensors").tensors}
    assert found["gate.weight"].changed == 2  # bits 32 to 39 are of elements 5 and 6


def test_elements_beyond_one_piece(tmp_path, monkeypatch):
    """Six bits: the bytes of a piece are no power of two."""
    for module in ("sources.source", "verification.differences"):
        monkeypatch.setattr(f"tpack.{module}.BLOCK", 64)
    monkeypatch.setattr("tpack.container.header.CHUNK", 48)
    one, two = (RNG.bytes(750) for _ in range(2))
    for name, data in (("a", one), ("b", two)):
        tensors = TERNARY | {"x": ("F6_E2M3", (1000,), data)}
        tpack.convert(write(tmp_path / name, tensors), tmp_path / f"{name}.safetensors")
        assert content(tmp_path / f"{name}.safetensors")["x"][2] == data
    pairs = [np.unpackbits(np.frombuffer(d, np.uint8), bitorder="little") for d in (one, two)]
    count = int((pairs[0] != pairs[1]).reshape(-1, 6).any(axis=1).sum())
    found = {t.name: t for t in tpack.diff(*(tmp_path / f"{n}.safetensors" for n in "ab")).tensors}
    assert found["x"].changed == count
    (problem,) = tpack.verify(tmp_path / "a.safetensors", tmp_path / "b").problems
    assert f"{count} of 1000 values differ" in problem


def test_inspect_gives_the_logical_shape(packed):
    kept = {row.name: row for row in tpack.inspect(packed).kept}
    assert {n: (r.dtype, r.shape, r.nbytes) for n, r in kept.items()} == {
        name: (BY_CODE[code].name, shape, len(data)) for name, (code, shape, data) in PACKED.items()
    }


def test_unpack_gives_the_same_bytes(source, packed, tmp_path):
    from tpack.unpacking import unpack_file

    unpack_file(packed, tmp_path / "plain.safetensors")
    assert content(tmp_path / "plain.safetensors") == content(source)
    found = tpack.unpack(packed)
    assert {n: (found[n].dtype, tuple(found[n].shape)) for n in PACKED} == HELD
    assert all(bits(found[name]) == data for name, (_, _, data) in PACKED.items())
    with pytest.raises(UnsupportedError, match="torch does not have") as caught:
        unpack_file(packed, tmp_path / "plain.pt")
    assert caught.value.tensor == "gate.weight"


def test_load_and_save_give_the_same_file(packed, tmp_path):
    model = tpack.load(packed)
    found = model.state_dict()
    assert {n: (found[n].dtype, tuple(found[n].shape)) for n in PACKED} == HELD
    assert all(bits(found[name]) == data for name, (_, _, data) in PACKED.items())
    tpack.save(model, tmp_path / "saved.safetensors")
    assert (tmp_path / "saved.safetensors").read_bytes() == packed.read_bytes()


def test_generated_source_takes_the_tensors(packed, tmp_path):
    program = tpack.inspect(packed).program
    (tmp_path / "made.py").write_text(tpack.generate_pytorch_code(program, standalone=True))
    spec = importlib.util.spec_from_file_location("made", tmp_path / "made.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    model = made.Model()
    model.load_state_dict(tpack.load(packed).state_dict(), strict=True, assign=True)
    tpack.save(model, tmp_path / "saved.safetensors", layerdef=program)
    assert {n: content(tmp_path / "saved.safetensors")[n] for n in PACKED} == PACKED
    tpack.save(model, tmp_path / "read.safetensors")  # what the module itself tells
    found = content(tmp_path / "read.safetensors")
    assert found["up.weight"] == PACKED["up.weight"]
    assert found["gate.weight"] == ("U8", (4, 6), PACKED["gate.weight"][2])


@pytest.mark.parametrize("form", ["state", "m.pt", "dcp"])
def test_items_of_torch_are_two_elements(tmp_path, form):
    four = torch.arange(256, dtype=torch.uint8).view(8, 32).view(torch.float4_e2m1fn_x2)
    state = {"down.weight": torch.from_numpy(TRITS), "up.weight": four}
    source = state if form == "state" else tmp_path / form
    if form == "m.pt":
        torch.save(state, source)
    elif form == "dcp":
        import torch.distributed.checkpoint as dcp

        with warnings.catch_warnings(action="ignore"):
            dcp.save(state, checkpoint_id=source, no_dist=True)
    out = tmp_path / "out.safetensors"
    tpack.convert(source, out)
    assert content(out)["up.weight"] == ("F4", (8, 64), bytes(range(256)))
    assert tpack.verify(out, source).ok
    with open_source(source) as opened:
        assert opened.tensors["up.weight"].shape == (8, 64)


def test_a_folder_of_shards(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "model-00001-of-00002.safetensors", TERNARY)
    write(folder / "model-00002-of-00002.safetensors", PACKED)
    homes = {
        name: f"model-0000{1 + (name in PACKED)}-of-00002.safetensors" for name in TERNARY | PACKED
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tpack.convert(folder, tmp_path / "out")
    assert tpack.verify(tmp_path / "out", folder).ok
    found = content(tmp_path / "out" / "model-00002-of-00002.safetensors")
    assert found == PACKED
    with pytest.raises(UnsupportedError, match="looks packed by MX") as caught:
        tpack.export(tmp_path / "out", "hf-bitnet", tmp_path / "exported")
    assert caught.value.tensor in PACKED


def test_gguf_refuses_them_by_name(tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    four = torch.zeros(512, 128, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    packed = gguf_exports.folder(tmp_path, gguf_exports.hf_weights() | {name: four})
    wanted = "is float4_e2m1fn, expected .* in GGUF. Convert a model that has it in one of these"
    with pytest.raises(UnsupportedError, match=wanted) as caught:
        tpack.export(packed, "gguf", tmp_path / "out.gguf")
    assert caught.value.tensor == name
