"""What is known of the source survives load and save."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from corpus import make
from loaded_models import LOADABLE, mlp
from safetensors.torch import save_file
from torch import nn

import tpack
from tpack.build import build_module
from tpack.container import Checkpoint, Origin, Piece, TernaryEntry, digest, write_checkpoint
from tpack.nn import freeze, unfreeze


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
