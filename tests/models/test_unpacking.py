"""Unpacking: the source's dtype and bits come back."""

import json

import hf_models
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from corpus import make
from safetensors.torch import load_file, save_file

import tpack
from tpack.cli.main import cli
from tpack.errors import ExistsError, InputError, TpackError, UnsupportedError, UsageError
from tpack.unpacking import unpack_file, unpack_folder

EXACT = [name for name in sorted(make.checkpoints()) if name != "quantized"]


@pytest.mark.parametrize("name", EXACT)
def test_the_source_comes_back(name, tmp_path):
    source, _ = make.checkpoints()[name]
    path = make.ACCEPT / f"{name}.safetensors"
    out = tmp_path / "plain.safetensors"
    assert unpack_file(path, out) == out.stat().st_size
    for back in (tpack.unpack(path), load_file(out)):
        assert back.keys() == source.keys()
        for key, tensor in source.items():
            assert back[key].dtype == tensor.dtype
            assert back[key].shape == tensor.shape
            if tensor.numel():
                one, two = (
                    t.contiguous().reshape(-1).view(torch.uint8) for t in (back[key], tensor)
                )
                assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("layout", ["t2", "t5"])
def test_dtype_of_the_source(tmp_path, dtype, layout):
    kind = getattr(torch, dtype)
    w = (make.trits(5, 77) * torch.tensor([[1.0], [2], [3], [4], [5]])).to(kind)
    tpack.convert({"w": w}, tmp_path / "m", exact=True, layout=layout)
    back = tpack.unpack(tmp_path / "m")["w"]
    assert back.dtype == kind
    assert torch.equal(back, w)


def test_explicit_dtype(tmp_path):
    w = (make.trits(4, 4) * 0.5).half()
    tpack.convert({"w": w, "b": torch.ones(2).double()}, tmp_path / "m")
    for dtype in (torch.float32, "bfloat16", torch.float64):
        back = tpack.unpack(tmp_path / "m", dtype)
        assert str(back["w"].dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")
        assert torch.equal(back["w"].double(), w.double())
        assert back["b"].dtype == torch.float64
    for bad in (torch.int8, "float8", "f32"):
        with pytest.raises(UsageError, match="dtype"):
            tpack.unpack(tmp_path / "m", bad)


def test_a_scale_that_the_dtype_cannot_hold(tmp_path):
    tpack.convert({"w": make.trits(4, 4) * 1e6}, tmp_path / "m")
    with pytest.raises(InputError, match="float16 cannot hold") as caught:
        tpack.unpack(tmp_path / "m", torch.float16)
    assert caught.value.tensor == "w"


def test_int8_scale_out_of_range_is_refused_not_wrapped(tmp_path):
    path = tmp_path / "m"
    tpack.convert({"w": (make.trits(4, 4) * 5).to(torch.int8)}, path)
    header, description, data = make.parts(path.read_bytes())
    start = header["w_scale"]["data_offsets"][0]
    for value in (300.0, 0.5, 128.0):
        raw = torch.tensor([value]).numpy().tobytes()
        path.write_bytes(make.build(header, description, data[:start] + raw + data[start + 4 :]))
        with pytest.raises(TpackError) as caught:
            tpack.unpack(path)
        assert caught.value.code == 3


def test_quantized_weights_unpack_to_scale_times_trit(tmp_path):
    w = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    tpack.convert({"w": w}, tmp_path / "m", quantize="mse", scale="row")
    back = tpack.unpack(tmp_path / "m")["w"]
    for row in back:
        assert len(set(row.abs()[row != 0].tolist())) == 1


def test_damaged_codes_leave_no_file(tmp_path):
    path, out = tmp_path / "m", tmp_path / "out"
    tpack.convert({"w": make.trits(4, 4)}, path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(TpackError) as caught:
        unpack_file(path, out)
    assert caught.value.tensor == "w_packed"
    assert caught.value.file == str(path)
    assert not out.exists()


def test_a_damaged_file_is_malformed_input(tmp_path):
    path = tmp_path / "m"
    tpack.convert({"w": make.trits(4, 4)}, path)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(TpackError) as caught:
        tpack.unpack(path)
    assert caught.value.code == 3


def test_output_is_not_replaced(tmp_path):
    path, out = tmp_path / "m", tmp_path / "out"
    tpack.convert({"w": make.trits(4, 4)}, path)
    out.write_bytes(b"old")
    with pytest.raises(ExistsError):
        unpack_file(path, out)
    assert out.read_bytes() == b"old"
    unpack_file(path, out, force=True)
    assert torch.equal(load_file(out)["w"], make.trits(4, 4))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".PT"])
def test_the_suffix_says_the_form(tmp_path, suffix):
    tied = make.trits(4, 4) * 0.5
    state = {"a.weight": tied, "b.weight": make.trits(3, 8).bfloat16(), "bias": torch.ones(2)}
    tpack.convert(state | {"c.weight": tied}, tmp_path / "m")
    out = tmp_path / f"x{suffix}"
    assert unpack_file(tmp_path / "m", out) == out.stat().st_size
    back = torch.load(out, weights_only=True)
    assert set(back) == {*state, "c.weight"}
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert back["c.weight"].data_ptr() == back["a.weight"].data_ptr()
    assert tpack.verify(tmp_path / "m", out).ok


def test_arrays_of_numpy(tmp_path):
    tpack.convert({"a": make.trits(4, 4) * 0.5, "b": torch.ones(2)}, tmp_path / "m")
    unpack_file(tmp_path / "m", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as found:
        assert np.array_equal(found["a"], make.trits(4, 4) * 0.5)


def test_another_suffix_is_refused(tmp_path):
    tpack.convert({"w": make.trits(4, 4)}, tmp_path / "m")
    result = CliRunner().invoke(
        cli, ["unpack", str(tmp_path / "m"), "-o", str(tmp_path / "x.gguf")]
    )
    assert isinstance(result.exception, UsageError)
    assert result.exception.message.endswith(
        "x.gguf' has suffix '.gguf', expected .safetensors, .pt, .pth, .bin or .npz. "
        "tpack.export writes files of other systems."
    )
    assert not (tmp_path / "x.gguf").exists()


# ---- folders


@pytest.fixture
def packed_folder(tmp_path):
    """Two shards with what lies beside them, packed; and the plain source."""
    source = tmp_path / "source"
    source.mkdir()
    generator = torch.Generator().manual_seed(0)
    trits = torch.randint(-1, 2, (2, 16, 64), generator=generator).to(torch.bfloat16) * 0.25
    shards = [
        {"model.layers.0.mlp.up_proj.weight": trits[0], "model.norm.weight": torch.rand(64)},
        {"model.layers.1.mlp.up_proj.weight": trits[1]},
    ]
    for number, shard in enumerate(shards, 1):
        save_file(shard, source / f"model-0000{number}-of-00002.safetensors")
    homes = {
        name: f"model-0000{number}-of-00002.safetensors"
        for number, shard in enumerate(shards, 1)
        for name in shard
    }
    index = {"metadata": {"total_size": 1}, "weight_map": homes}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text("{}")
    (source / "README.md").write_text(
        "---\nlicense: mit\ntags:\n- small\n---\n\n# A model\n\nIts text.\n"
    )
    (source / "modules.json").write_text('[{"path": "2_Dense"}]')
    (source / "2_Dense").mkdir()
    save_file({"linear.weight": trits[0]}, source / "2_Dense" / "model.safetensors")
    (source / "2_Dense" / "config.json").write_text('{"in_features": 64}')
    tpack.convert(source, tmp_path / "packed", capture=False)
    return source, tmp_path / "packed"


def test_a_folder_gives_the_folder_back(packed_folder, tmp_path):
    source, packed = packed_folder
    written = unpack_folder(packed, tmp_path / "plain")
    plain = tmp_path / "plain"
    names = {str(p.relative_to(source)) for p in source.rglob("*")}
    assert {str(p.relative_to(plain)) for p in plain.rglob("*")} == names
    weights = list(plain.rglob("*.safetensors"))
    assert written == sum(p.stat().st_size for p in weights)
    for path in weights:
        theirs = load_file(source / path.relative_to(plain))
        ours = load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], t) and ours[n].dtype == t.dtype for n, t in theirs.items())
    for name in ("config.json", "modules.json", "tokenizer.json", "2_Dense/config.json"):
        assert json.loads((plain / name).read_text()) == json.loads((source / name).read_text())
    index = json.loads((plain / "model.safetensors.index.json").read_text())
    wanted = json.loads((source / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == wanted["weight_map"]
    assert (plain / "README.md").read_text() == (source / "README.md").read_text()


def test_an_unpacked_folder_packs_to_the_same_weights(packed_folder, tmp_path):
    _, packed = packed_folder
    unpack_folder(packed, tmp_path / "plain")
    tpack.convert(tmp_path / "plain", tmp_path / "again", exact=True, capture=False)
    assert tpack.diff(packed, tmp_path / "again").equal


def test_a_folder_in_another_dtype(packed_folder, tmp_path):
    _, packed = packed_folder
    unpack_folder(packed, tmp_path / "plain", dtype="float32")
    state = load_file(tmp_path / "plain" / "model-00002-of-00002.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_folder_does_not_go_into_itself_or_over_another(packed_folder, tmp_path):
    _, packed = packed_folder
    for target in (packed, packed / "plain", tmp_path):
        with pytest.raises(ExistsError, match="input itself"):
            unpack_folder(packed, target, force=True)
    unpack_folder(packed, tmp_path / "plain")
    with pytest.raises(ExistsError, match="force=True"):
        unpack_folder(packed, tmp_path / "plain")
    unpack_folder(packed, tmp_path / "plain", force=True)


def test_the_command_writes_a_folder_or_one_file(packed_folder, tmp_path):
    _, packed = packed_folder
    for output in ("plain", "plain.safetensors"):
        done = CliRunner().invoke(cli, ["unpack", str(packed), "-o", str(tmp_path / output)])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "plain" / "config.json").exists()
    assert len(load_file(tmp_path / "plain.safetensors")) == 3


@pytest.mark.parametrize(
    "name", ["config.json", "README.md", "tokenizer.json", "2_Dense/config.json"]
)
def test_a_link_out_of_the_folder_is_not_followed(packed_folder, tmp_path, name):
    _, packed = packed_folder
    outside = tmp_path / "secret.json"
    outside.write_text('{"secret": 1}')
    (packed / name).unlink()
    (packed / name).symlink_to(outside)
    with pytest.raises(InputError, match="leads out of the folder"):
        unpack_folder(packed, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


# ---- folders that another system packed


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_a_folder_of_bitnet_unpacks_to_a_plain_model(tmp_path, linear_class):
    """transformers would read its floats as packed bytes, or round them a second time."""
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    hf_models.save_packed(hf_models.make("BitNet"), tmp_path / "source", linear_class)
    tpack.convert(tmp_path / "source", packed, capture=False)
    done = CliRunner().invoke(cli, ["unpack", str(packed), "-o", str(plain)])
    assert "note: the layers of the source round their inputs to int8" in done.stderr
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    expected = hf_models.logits(hf_models.load(tmp_path / "source"))
    found = hf_models.logits(hf_models.load(plain))
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()  # of rounding the inputs


def test_floats_that_a_model_rounds_as_it_runs_are_not_rounded_twice(tmp_path):
    settings = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    source = hf_models.make("Llama")
    source.save_pretrained(tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config["quantization_config"] = settings | {"quantization_mode": "online"}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    tpack.convert(tmp_path / "source", tmp_path / "packed", capture=False)
    unpack_folder(tmp_path / "packed", tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
    config["quantization_config"]["use_rms_norm"] = True
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    tpack.convert(tmp_path / "source", tmp_path / "packed", force=True, capture=False)
    with pytest.raises(UnsupportedError, match="use_rms_norm"):
        unpack_folder(tmp_path / "packed", tmp_path / "normed")


@pytest.mark.parametrize("mixed", [False, True])
def test_the_config_says_how_weights_are_packed_only_where_some_still_are(tmp_path, mixed):
    """compressed-tensors would make layers of packed weights, and find none of theirs."""
    group = {"targets": ["Linear"], "weights": {"num_bits": 2, "type": "int", "symmetric": True}}
    group["weights"]["strategy"] = "tensor"
    method = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    state = {
        "up.weight_packed": torch.tensor([[0b11100111], [0b01101011]], dtype=torch.int32),
        "up.weight_scale": torch.tensor([0.5]),
        "up.weight_shape": torch.tensor([2, 4]),
    }
    if mixed:  # -2 is no trit
        state |= {f"down.{name[3:]}": tensor.clone() for name, tensor in state.items()}
        state["down.weight_packed"][0, 0] = 0
    source = tmp_path / "source"
    source.mkdir()
    save_file(state, source / "model.safetensors")
    config = {"quantization_config": method | {"config_groups": {"group_0": group}}}
    (source / "config.json").write_text(json.dumps(config))
    tpack.convert(source, tmp_path / "packed", capture=False)
    unpack_folder(tmp_path / "packed", tmp_path / "plain")
    weight = load_file(tmp_path / "plain/model.safetensors")["up.weight"]
    assert weight.tolist() == [[0.5, -0.5, 0.0, 0.5], [0.5, 0.0, 0.0, -0.5]]
    assert json.loads((tmp_path / "plain/config.json").read_text()) == (config if mixed else {})
