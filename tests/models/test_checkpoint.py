"""load and save: mapped bytes, the same computation, the same file."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from corpus import make
from loaded_models import LOADABLE, mlp
from running import dequantized, readings
from safetensors.torch import load_file
from torch import nn

import tpack
from tpack import codec
from tpack.container import Checkpoint
from tpack.errors import ExistsError, FormatError, LayerDefError, TpackError
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Return,
    Tuple,
)


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
