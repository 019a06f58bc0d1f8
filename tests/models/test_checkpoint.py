"""Load and save: packed bytes are mapped, and outputs equal those of plain torch."""

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from corpus import make
from running import dequantized, readings
from safetensors.torch import load_file, save_file
from torch import nn

import tpack
from tpack import codec
from tpack.build import build_module
from tpack.container import Checkpoint, Origin, Piece, TernaryEntry, digest, write_checkpoint
from tpack.errors import ExistsError, FormatError, LayerDefError, TpackError
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
)
from tpack.nn import freeze, unfreeze

LOADABLE = [name for name in sorted(make.checkpoints()) if name != "names"]


def mlp():
    """A program with a repeated block, and its source."""
    x = Identifier("x")
    block = LayerDef(
        "Block",
        [
            Param("weight", "TernaryTensor", [16, 16]),
            Param("bias", "Tensor", [16]),
            Param("x", "Tensor"),
        ],
        [
            Return(
                FunctionCall(
                    "relu",
                    [FunctionCall("linear", [x, Identifier("weight"), Identifier("bias")])],
                )
            )
        ],
    )
    root = LayerDef(
        "Mlp",
        [Param("blocks", "Layer", layer="Block", repeat=3), Param("x", "Tensor")],
        [Return(LayerCall("blocks", [x]))],
    )
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i in range(3):
        state[f"blocks.{i}.weight"] = make.trits(16, 16) * (i + 1) / 16
        state[f"blocks.{i}.bias"] = torch.randn(16, generator=generator)
    return Program([block, root], "Mlp"), state


@pytest.fixture
def file(tmp_path):
    program, state = mlp()
    tpack.convert(state, tmp_path / "m", layerdef=program)
    return tmp_path / "m"


def plain(state, x):
    for i in range(3):
        x = F.relu(F.linear(x, state[f"blocks.{i}.weight"], state[f"blocks.{i}.bias"]))
    return x


@pytest.mark.parametrize("name", LOADABLE)
def test_state_dict_is_the_tensors_of_the_file(name):
    path = make.ACCEPT / f"{name}.safetensors"
    module = tpack.load(path)
    assert not module.training
    state, wanted = module.state_dict(), load_file(path)
    assert state.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert state[key].dtype == tensor.dtype
        assert state[key].shape == tensor.shape
        assert state[key].contiguous().reshape(-1).view(torch.uint8).tolist() == (
            tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
        )


def test_output_equals_torch_on_the_plain_weights(file):
    _, state = mlp()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(tpack.load(file)(x), plain(state, x))
    torch.testing.assert_close(plain(tpack.unpack(file), x), plain(state, x), rtol=0, atol=0)


def test_an_unspecified_forward_says_how_to_supply_it():
    module = tpack.load(make.ACCEPT / "conv.safetensors")
    with pytest.raises(NotImplementedError, match="layerdef"):
        module(torch.ones(1, 3, 8, 8))


def test_a_file_without_layerdefs_is_refused():
    with pytest.raises(LayerDefError, match="no LayerDefs") as caught:
        tpack.load(make.ACCEPT / "names.safetensors")
    assert caught.value.file == str(make.ACCEPT / "names.safetensors")


def test_writing_to_a_loaded_module_leaves_the_file(file):
    before = file.read_bytes()
    module = tpack.load(file)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    assert file.read_bytes() == before
    assert tpack.load(file).state_dict()["blocks.0.bias"].any()


def test_tensors_map_the_file(file):
    module = tpack.load(file)
    with Path("/proc/self/maps").open() as maps:
        spans = [
            tuple(int(part, 16) for part in line.split()[0].split("-"))
            for line in maps
            if str(file) in line
        ]
    assert spans
    for tensor in module.state_dict().values():
        assert any(start <= tensor.data_ptr() < stop for start, stop in spans)


def test_a_file_may_go_away_after_loading(file):
    module = tpack.load(file)
    file.unlink()
    assert module(torch.ones(1, 16)).shape == (1, 16)


def test_save_round_trips_bit_for_bit(file, tmp_path):
    module = tpack.load(file)
    tpack.save(module, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert tpack.verify(tmp_path / "again").ok
    with pytest.raises(ExistsError):
        tpack.save(module, tmp_path / "again")
    tpack.save(module, tmp_path / "again", force=True)


def test_save_a_changed_scale(file, tmp_path):
    module = tpack.load(file)
    with torch.no_grad():
        module.state_dict()["blocks.1.weight_scale"].mul_(2)
    tpack.save(module, tmp_path / "again")
    assert tpack.verify(tmp_path / "again").ok
    _, state = mlp()
    assert torch.equal(
        tpack.unpack(tmp_path / "again")["blocks.1.weight"], 2 * state["blocks.1.weight"]
    )


def test_save_refuses_what_it_could_not_read(file, tmp_path):
    module = tpack.load(file)
    module.state_dict()["blocks.0.weight_packed"].fill_(255)
    with pytest.raises(TpackError):
        tpack.save(module, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_save_of_a_scale_that_is_not_finite(file, tmp_path):
    module = tpack.load(file)
    with torch.no_grad():
        module.state_dict()["blocks.0.weight_scale"].fill_(float("nan"))
    try:
        tpack.save(module, tmp_path / "again")
    except TpackError:
        assert not (tmp_path / "again").exists()
    else:
        assert tpack.verify(tmp_path / "again").ok


def test_save_refuses_a_module_that_does_not_fit(tmp_path):
    program, _ = mlp()
    with pytest.raises(TpackError):
        tpack.save(nn.Linear(3, 3), tmp_path / "x", layerdef=program)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["group_f16_t5", "row_bf16", "int8", "tied", "linear"])
def test_save_of_a_loaded_corpus_file_verifies(name, tmp_path):
    path = make.ACCEPT / f"{name}.safetensors"
    tpack.save(tpack.load(path), tmp_path / "again")
    assert tpack.verify(tmp_path / "again").ok
    assert {k: v.tolist() for k, v in load_file(tmp_path / "again").items()} == {
        k: v.tolist() for k, v in load_file(path).items()
    }


RESIDENT = """
import sys, torch, tpack, tpack.checkpoint
tpack.load(sys.argv[2])
def rss():
    return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0]) * 1024
before = rss()
module = tpack.load(sys.argv[1])
print(rss() - before)
"""


def test_loading_does_not_read_the_tensors(tmp_path):
    big, small = tmp_path / "big", tmp_path / "small"
    for path, rows in ((big, 1 << 19), (small, 8)):
        state = {"fc.weight": make.trits(4, 4), "embed.weight": torch.zeros(rows, 64)}
        tpack.convert(state, path)
    assert big.stat().st_size > 128 << 20
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, big, small],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < 16 << 20


def test_tied_tensors_are_there_once_and_saved_under_all_their_names(tmp_path):
    table, weight = torch.randn(8, 4), torch.eye(4)
    state = {"embed.weight": table, "fc.weight": weight, "again.weight": weight}
    state["lm_head.weight"] = table
    tpack.convert(state, tmp_path / "a.safetensors")
    module = copy.deepcopy(tpack.load(tmp_path / "a.safetensors"))
    assert module.ternary_aliases == {"lm_head.weight": "embed.weight", "again.weight": "fc.weight"}
    assert "lm_head.weight" not in module.state_dict()
    tpack.save(module, tmp_path / "b.safetensors")
    back = tpack.unpack(tmp_path / "b.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert tpack.verify(tmp_path / "b.safetensors", state).ok


# ---- a scale for each column


#: By name: the shape of a weight and its split.
COLUMN_WEIGHTS = {
    "w": ((6, 10), 1),  # (in, out): the scale belongs to outputs
    "one": ((1, 10), 1),
    "thin": ((10, 1), 1),
    "flat": ((2, 5), 0),
    "stack": ((3, 4, 10), 2),
    "turned": ((6, 2, 3, 3), 1),  # of a ConvTranspose2d: columns are out * h * w
}


def columns_program():
    args = {"bias": False, "scale": "column"}
    layers = {
        "linear": ("TernaryLinear", {"in_features": 10, "out_features": 7, **args}),
        "bit": ("BitLinear", {"in_features": 7, "out_features": 5, **args, "layout": "t5"}),
    }
    x = Identifier("x")
    rest = [Identifier(name) for name in COLUMN_WEIGHTS if name != "w"]
    return LayerDef(
        "Columns",
        [
            *(
                Param(name, "TernaryTensor", shape, scale="column", split=split)
                for name, (shape, split) in COLUMN_WEIGHTS.items()
            ),
            *(Param(n, "Layer", layer=layer, args=a) for n, (layer, a) in layers.items()),
            Param("x", "Tensor"),
        ],
        [
            Assignment("x", LayerCall("linear", [BinaryOp("@", x, Identifier("w"))])),
            Assignment("x", LayerCall("bit", [x])),
            Return(Tuple([x, *(BinaryOp("*", each, Literal(1.0)) for each in rest)])),
        ],
    )


def test_a_scale_for_each_column_goes_through_everything(tmp_path):
    modules = readings(columns_program())
    state = modules["build"].state_dict()
    weights = {
        name: dequantized(state[f"{name}_packed"], state[f"{name}_scale"], shape, split)
        for name, (shape, split) in COLUMN_WEIGHTS.items()
    }
    weights["linear.weight"] = dequantized(
        state["linear.weight_packed"], state["linear.weight_scale"], (7, 10)
    )
    codes = codec.unpack(state["bit.weight_packed"].numpy(), 7, "t5")
    weights["bit.weight"] = torch.from_numpy(codes) * state["bit.weight_scale"].double()

    x = torch.randn(3, 6)
    hidden = (x.double() @ weights["w"] @ weights["linear.weight"].T).float()
    gain = 127 / hidden.abs().amax(-1, keepdim=True)
    rounded = ((hidden * gain).round() / gain).double()
    expected = [
        rounded @ weights["bit.weight"].T,
        *(weights[name] for name in list(COLUMN_WEIGHTS)[1:]),
    ]
    for name, module in modules.items():
        path = tmp_path / name
        if name != "standalone":
            tpack.save(module, path)
        else:
            tpack.save(module, path, layerdef=columns_program())
        plain = {key: weight.float() for key, weight in weights.items()}
        assert tpack.verify(path, plain).ok
        assert not tpack.diff(path, tmp_path / "build").tensors
        assert {t.scale for t in tpack.inspect(path).tensors} == {"column"}
        back = tpack.unpack(path)
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[key], plain[key]) for key in plain)
        for each in (module, tpack.load(path)):
            for found, wanted in zip(each(x), expected, strict=True):
                torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


# ---- what is known of the source survives


def kinds():
    """Sources of many kinds, and the options that they are converted with."""
    generator = torch.Generator().manual_seed(0)
    ternary, shared = make.trits(8, 64), make.trits(4, 4)
    masters = torch.randn(8, 64, generator=generator)
    trits = ternary.to(torch.int8)
    kept = {
        "a.bias": torch.randn(3, generator=generator).double(),
        "b.bias": torch.tensor(True),
        "c.bias": torch.empty(0, 3),
        "d.bias": torch.tensor([1 + 2j]),
        "e.bias": torch.tensor([float("nan"), -0.0]).bfloat16(),
        "f.bias": torch.randn(4, generator=generator).to(torch.float8_e4m3fn),
        "g.bias": torch.tensor(7),
    }
    row, group = torch.arange(1.0, 9.0)[:, None], torch.ones(8, 2).cumsum(0)
    groups = ternary * group.repeat_interleave(32, 1)
    return {
        "float64": ({"fc.weight": ternary.double() * 0.1}, {}),
        "masters64": ({"fc.weight": masters.double()}, {}),
        "bfloat16": ({"fc.weight": ternary.bfloat16() * 0.5}, {}),
        "float16": ({"fc.weight": masters.half()}, {}),
        "int8": ({"fc.weight": trits}, {}),
        "int8_scale": ({"fc.weight": trits, "fc.weight_scale": torch.tensor([0.3])}, {}),
        "int8_quantized": ({"fc.weight": masters.mul(9).to(torch.int8)}, {"quantize": "absmean"}),
        "row": ({"fc.weight": ternary * row}, {}),
        "groups": ({"fc.weight": groups}, {}),
        "t5": ({"fc.weight": groups.half()}, {"layout": "t5"}),
        "absmean": ({"fc.weight": masters}, {"quantize": "absmean"}),
        "twn": ({"fc.weight": masters}, {"quantize": "twn", "scale": "row"}),
        "mse": ({"fc.weight": masters}, {"quantize": "mse", "scale": "group:16"}),
        "zeros": ({"fc.weight": torch.zeros(4, 4), "up.weight": masters}, {}),
        "conv": ({"conv.weight": make.trits(2, 3, 4, 4)}, {}),
        "aliases": ({"a.weight": shared, "b.weight": shared, "a.bias": masters[0]}, {}),
        "kept": ({"fc.weight": ternary, **kept}, {}),
        "cast": ({"fc.weight": ternary, "fc.bias": masters[0]}, {"keep_dtype": "f16"}),
    }


def round_trip(path, change=lambda module: module):
    """The bytes of a checkpoint after it was loaded, changed and saved."""
    again = path.with_name("again")
    tpack.save(change(tpack.load(path)), again, force=True)
    assert tpack.verify(again).ok
    return again.read_bytes()


@pytest.mark.parametrize("kind", kinds())
def test_load_and_save_give_the_same_bytes(kind, tmp_path):
    source, options = kinds()[kind]
    tpack.convert(source, tmp_path / "m", **options)
    assert round_trip(tmp_path / "m") == (tmp_path / "m").read_bytes()


@pytest.mark.parametrize("name", LOADABLE)
def test_load_and_save_of_the_corpus_give_the_same_bytes(name, tmp_path):
    path = tmp_path / "m"
    path.write_bytes((make.ACCEPT / f"{name}.safetensors").read_bytes())
    assert round_trip(path) == path.read_bytes()


def test_a_description_that_is_loaded_is_the_one_that_was_written(tmp_path):
    source = {"fc.weight": torch.randn(4, 64, dtype=torch.float64)}
    tpack.convert(source, tmp_path / "m", quantize="absmean")
    (before,) = tpack.inspect(tmp_path / "m").tensors
    round_trip(tmp_path / "m")
    (after,) = tpack.inspect(tmp_path / "again").tensors
    assert after == before
    assert (after.method, after.source_dtype) == ("absmean", "float64")
    assert after.relative_error > 0.3


def state_round_trip(module):
    module.load_state_dict({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return module


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: module.to("cpu"),
        lambda module: torch.compile(module, backend="eager"),
        state_round_trip,
        lambda module: freeze(unfreeze(module)),
        lambda module: module.train().eval().requires_grad_(False),
    ],
    ids=["deepcopy", "pickle", "to", "compile", "state_dict", "freeze", "eval"],
)
def test_what_happens_to_a_module_does_not_change_what_is_known_of_its_source(change, tmp_path):
    program, state = mlp()
    state["blocks.1.weight"] = torch.randn(16, 16, dtype=torch.float32)
    tpack.convert(state, tmp_path / "m", layerdef=program, quantize="twn")
    assert round_trip(tmp_path / "m", change) == (tmp_path / "m").read_bytes()


def test_a_divisor_comes_back(tmp_path):
    folder = tmp_path / "bitnet"
    folder.mkdir()
    packed = torch.randint(0, 3, (2, 8), dtype=torch.uint8)
    codes = packed | packed.roll(1, 0) << 2 | packed.roll(1, 1) << 4 | packed << 6
    save_file(
        {"fc.weight": codes, "fc.weight_scale": torch.tensor([3.0])}, folder / "model.safetensors"
    )
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitnet"}}
    (folder / "config.json").write_text(json.dumps(config))
    tpack.convert(folder, tmp_path / "m")
    with Checkpoint(tmp_path / "m") as file:
        assert file.document.tensors["fc.weight"].divisor == 3.0
    tpack.save(tpack.load(tmp_path / "m"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m/model.safetensors").read_bytes()


def test_other_metadata_comes_back(file, tmp_path):
    """The key-value pairs of GGUF, which have a digest, and what another tool added."""
    with Checkpoint(file) as opened:
        pieces = [
            Piece.of(name, entry.dtype, entry.shape, bytes(opened.read(name)))
            for name, entry in opened.entries.items()
        ]
        document = replace(opened.document, metadata={"gguf": digest([b"{}"])})
    metadata = {"gguf": "{}", "note": "mine"}
    write_checkpoint(tmp_path / "m", document, pieces, metadata=metadata, force=True)
    assert round_trip(tmp_path / "m") == (tmp_path / "m").read_bytes()
    with Checkpoint(tmp_path / "again") as again:
        assert again.metadata.keys() == {"gguf", "note", "format", "tpack"}


def test_metadata_that_was_damaged_is_not_blessed(file, tmp_path):
    with Checkpoint(file) as opened:
        pieces = [
            Piece.of(name, entry.dtype, entry.shape, bytes(opened.read(name)))
            for name, entry in opened.entries.items()
        ]
        document = replace(opened.document, metadata={"gguf": digest([b"{}"])})
    write_checkpoint(tmp_path / "m", document, pieces, metadata={"gguf": "[]"}, force=True)
    tpack.save(tpack.load(tmp_path / "m"), tmp_path / "again")
    assert not tpack.verify(tmp_path / "again").ok


def test_a_folder_that_is_saved_is_the_file_of_the_same_model(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    state = {f"layers.{i}.fc.weight": torch.randn(4, 64) for i in range(3)}
    state["norm.weight"] = torch.ones(4)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    homes = {name: names[name > "layers.1"] for name in state}
    for name in names:
        save_file({key: state[key] for key in state if homes[key] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    tpack.convert(folder, tmp_path / "packed")
    save_file(state, tmp_path / "whole.safetensors")
    tpack.convert(tmp_path / "whole.safetensors", tmp_path / "whole")
    tpack.save(tpack.load(tmp_path / "packed"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_captured_model_comes_back(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    tpack.convert(model, tmp_path / "m", example_args=(torch.randn(2, 8),))
    assert round_trip(tmp_path / "m") == (tmp_path / "m").read_bytes()


def test_a_layerdef_given_by_hand_keeps_what_is_known(file, tmp_path):
    program, _ = mlp()
    tpack.save(tpack.load(file), tmp_path / "again", layerdef=program)
    before, after = tpack.inspect(file), tpack.inspect(tmp_path / "again")
    assert after.tensors == before.tensors


def test_only_weights_that_were_trained_lose_their_source(tmp_path):
    program, state = mlp()
    tpack.convert(state, tmp_path / "m", layerdef=program)
    module = unfreeze(tpack.load(tmp_path / "m"))
    with torch.no_grad():
        module.blocks[1].weight.copy_(torch.randn(16, 16))
    tpack.save(freeze(module), tmp_path / "again")
    assert tpack.verify(tmp_path / "again").ok
    report = tpack.inspect(tmp_path / "again")
    found = [(t.method, t.relative_error) for t in report.tensors]
    assert found == [("exact", 0.0), ("unknown", None), ("exact", 0.0)]
    assert json.loads(json.dumps(report.to_dict()))["tensors"][1]["relative_error"] is None
    tpack.save(tpack.load(tmp_path / "again"), tmp_path / "third")
    assert (tmp_path / "third").read_bytes() == (tmp_path / "again").read_bytes()


def test_a_module_without_a_file_claims_no_source(tmp_path):
    """Generated and built modules: nobody knows what their weights were before."""
    program, state = mlp()
    namespace = {}
    exec(tpack.generate_pytorch_code(program), namespace)
    for module in (namespace["Mlp"](), build_module(program)):
        for i in range(3):
            module.blocks[i].weight_packed = tpack.pack_ternary(
                state[f"blocks.{i}.weight"].sign().to(torch.int8)
            )
        tpack.save(module, tmp_path / "m", force=True)
        methods = {t.method for t in tpack.inspect(tmp_path / "m").tensors}
        assert methods == {"unknown"}
        assert tpack.verify(tmp_path / "m").ok


def test_equal_bytes_of_another_dtype_are_another_scale():
    """0x3f00 is 0.5 in bfloat16, and 1.75 in float16."""
    entry = TernaryEntry((2, 2), 1, "t2", "tensor", "absmean", "bfloat16", 0.5, "a", "b")
    now = replace(entry, method="unknown", source_dtype="float16", relative_error=None)
    origin = Origin({"w": entry}, {"w": "bfloat16"})
    assert origin.entry("w", now, "bfloat16") == entry
    assert origin.entry("w", now, "float16") == now
    assert origin.entry("w", replace(now, scale="row"), "bfloat16").method == "unknown"
    assert origin.entry("v", now, "bfloat16").method == "unknown"


# ---- checks while loading


@pytest.mark.parametrize(
    "name", ["blocks.1.weight_packed", "blocks.2.bias", "blocks.0.weight_scale"]
)
def test_load_checks_every_byte_if_asked(file, name):
    tpack.load(file, verify=True)
    with Checkpoint(file) as opened:
        at = opened.files[0].data_start + opened.entries[name].start
    blob = bytearray(file.read_bytes())
    blob[at] ^= 1 if name.endswith("packed") and blob[at] & 3 != 2 else 3
    file.write_bytes(blob)
    tpack.load(file)
    with pytest.raises(FormatError, match="is damaged: tensor 'blocks") as caught:
        tpack.load(file, verify=True)
    assert caught.value.file == str(file)


def test_load_checks_the_description_if_asked(file):
    before = file.read_bytes()
    changed = before.replace(rb"relative_error\":0.0", rb"relative_error\":0.5", 1)
    assert changed != before
    file.write_bytes(changed)
    tpack.load(file)
    with pytest.raises(FormatError, match="is damaged: the header or the description"):
        tpack.load(file, "cpu", True)
