"""Load and save: packed bytes are mapped, and outputs equal those of plain torch."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from corpus import make
from safetensors.torch import load_file
from torch import nn

import tpack
from tpack.errors import ExistsError, LayerDefError, TpackError
from tpack.layerdef import FunctionCall, Identifier, LayerCall, LayerDef, Param, Program, Return

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
