"""Conversion with LayerDefs: the program decides what is packed, and how finely."""

import json

import pytest
import torch
from conversion_sources import model, rows
from safetensors.torch import load_file
from tensors import trits

import tpack
from tpack.container import Checkpoint
from tpack.errors import (
    InputError,
    LayerDefError,
)
from tpack.layerdef import LayerDef, Param, Program, Unspecified


def block(rows=4):
    return LayerDef("Block", [Param("w", "TernaryTensor", [rows, 64])], [Unspecified()])


PROGRAM = Program([block(), model()], "Model")


def test_the_program_decides_what_is_packed(out):
    tree = LayerDef(
        "Model",
        [Param("embed", "TernaryTensor", [4, 8]), Param("fc", "Tensor", [4, 8])],
        [Unspecified()],
    )
    state = {"embed": trits(4, 8), "fc": trits(4, 8)}
    report = tpack.convert(state, out, layerdef=tree)
    assert rows(report)["embed"] == ("packed", "tensor", "exact")
    assert rows(report)["fc"][0] == "kept"
    assert tpack.verify(out, state).ok


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"blocks.0.w": (4, 64)}, "lacks blocks.1.w"),
        ({"blocks.0.w": (4, 64), "blocks.1.w": (4, 64), "x": (2,)}, "also has x"),
        ({"blocks.0.w": (4, 64), "blocks.1.w": (64, 4)}, "expected (4, 64)"),
    ],
)
def test_tensors_that_do_not_match_the_program(out, state, text):
    state = {name: trits(*shape) for name, shape in state.items()}
    with pytest.raises(LayerDefError) as caught:
        tpack.convert(state, out, layerdef=PROGRAM)
    assert text in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize(
    "kinds",
    [("tensor", "row"), ("row", "group:32"), ("tensor", "group:32"), ("group:32", "tensor")],
)
def test_copies_of_different_granularity_are_refined_losslessly(out, kinds, layout):
    factors = {
        "tensor": torch.tensor(0.5),
        "row": torch.tensor([[1.0], [2], [4], [8]]),
        "group:32": torch.tensor([1.0, 2]).repeat_interleave(32),
    }
    state = {f"blocks.{i}.w": trits(4, 64, seed=i) * factors[kind] for i, kind in enumerate(kinds)}
    tpack.convert(state, out, layerdef=PROGRAM, layout=layout)
    assert tpack.verify(out, state).ok
    back = tpack.unpack(out)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert len({row.scale for row in tpack.inspect(out).tensors}) == 1
    loaded = tpack.load(out).state_dict()
    assert set(loaded) == set(load_file(out))


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        (("tensor", "column"), "column"),
        (("column", "tensor"), "column"),
        (("group:48", "group:64"), "group:16"),
        (("group:64", "row"), "group:64"),
        (("column", "row"), None),
        (("group:64", "column"), None),
    ],
)
def test_copies_share_the_coarsest_scale_that_fits_all_or_are_refused(out, kinds, common):
    generator = torch.Generator().manual_seed(1)
    factors = {
        "tensor": torch.tensor(0.5),
        "row": torch.rand(16, 1, generator=generator) + 0.5,
        "column": torch.rand(192, generator=generator) + 0.5,
        "group:48": (torch.rand(16, 4, generator=generator) + 0.5).repeat_interleave(48, 1),
        "group:64": (torch.rand(16, 3, generator=generator) + 0.5).repeat_interleave(64, 1),
    }
    wide = LayerDef("Block", [Param("w", "TernaryTensor", [16, 192])], [Unspecified()])
    tree = Program([wide, model()], "Model")
    state = {f"blocks.{i}.w": trits(16, 192, seed=i) * factors[k] for i, k in enumerate(kinds)}
    if common is None:
        words = f"'blocks.1.w' has scales per {kinds[1]}, other copies of Block per {kinds[0]}"
        with pytest.raises(LayerDefError, match=words):
            tpack.convert(state, out, layerdef=tree)
        assert not out.exists()
        return
    tpack.convert(state, out, layerdef=tree)
    assert {row.scale for row in tpack.inspect(out).tensors} == {common}
    assert tpack.verify(out, state).ok
    back = tpack.unpack(out)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_refined_group_sizes(out):
    tree = Program(
        [LayerDef("Block", [Param("w", "TernaryTensor", [2, 300])], [Unspecified()]), model()],
        "Model",
    )
    wide = torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    state = {
        "blocks.0.w": trits(2, 300) * wide.repeat_interleave(128)[:300],
        "blocks.1.w": trits(2, 300) * wide.repeat_interleave(32)[:300],
    }
    tpack.convert(state, out, layerdef=tree)
    assert tpack.verify(out, state).ok
    assert {row.scale for row in tpack.inspect(out).tensors} == {"group:32"}


def test_dry_run_with_refinement(out):
    state = {
        "blocks.0.w": trits(4, 64),
        "blocks.1.w": trits(4, 64) * torch.tensor([[1.0], [2], [3], [4]]),
    }
    dry = tpack.convert(state, out, layerdef=PROGRAM, dry_run=True)
    real = tpack.convert(state, out, layerdef=PROGRAM)
    assert dry.output_bytes == real.output_bytes
    with Checkpoint(out) as file:
        told = {t.name: t.scale for t in real.tensors}
        assert told == {name: entry.scale for name, entry in file.document.tensors.items()}


def test_copies_of_different_dtypes_are_refused(out):
    state = {"blocks.0.w": trits(4, 64), "blocks.1.w": trits(4, 64).half()}
    with pytest.raises(LayerDefError, match="other copies of Block"):
        tpack.convert(state, out, layerdef=PROGRAM)


def test_layerdef_files(tmp_path, out):
    path = tmp_path / "tree.json"
    state = {"blocks.0.w": trits(4, 64), "blocks.1.w": trits(4, 64)}
    path.write_text(json.dumps(PROGRAM.to_dict()))
    tpack.convert(state, out, layerdef=path)
    blob = out.read_bytes()
    tpack.convert(state, out, layerdef=PROGRAM, force=True)
    assert out.read_bytes() == blob
    path.write_text(json.dumps(block().to_dict()))
    tpack.convert({"w": trits(4, 64)}, out, layerdef=str(path), force=True)
    assert tpack.verify(out).ok


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": 1}', '{"a":1,"a":2}', "\xff"])
def test_malformed_layerdef_files(tmp_path, out, text):
    path = tmp_path / "tree.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as caught:
        tpack.convert({"w": trits(4, 64)}, out, layerdef=path)
    assert caught.value.file == str(path)
    with pytest.raises(InputError, match="No such file"):
        tpack.convert({"w": trits(4, 64)}, out, layerdef=tmp_path / "gone.json")


def test_names_that_are_no_identifiers_give_no_program(out):
    state = {"class.weight": trits(4, 4), "my fc.weight": trits(4, 4)}
    report = tpack.convert(state, out)
    assert any("no LayerDefs" in note for note in report.notes)
    assert tpack.inspect(out).program is None
    assert tpack.verify(out, state).ok


def test_deep_names_convert(out):
    state = {"fc.weight": trits(4, 4), ".".join("a" * 300) + ".weight": trits(4, 4)}
    tpack.convert(state, out)
    assert tpack.verify(out, state).ok


def test_a_tensor_with_the_name_of_a_module(out):
    state = {"fc": trits(4, 4), "fc.weight": trits(4, 4)}
    tpack.convert(state, out)
    assert tpack.verify(out, state).ok
