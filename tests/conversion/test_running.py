"""A conversion says what cannot be run of its result, and the way out."""

import json

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf_files import values, write_model
from safetensors.torch import save_file
from torch import nn

import tpack

TERNARY = torch.randint(-1, 2, (8, 8), generator=torch.Generator().manual_seed(0)) * 0.5


def said(report):
    return [note for note in report.notes if "has no forward" in note]


def test_tensors_alone_have_no_forward(tmp_path):
    report = tpack.convert({"a.fc.weight": TERNARY}, tmp_path / "m")
    (note,) = said(report)
    assert "with example_args, or a .pt2 file of it, or describe it with layerdef=…" in note
    with pytest.raises(NotImplementedError):
        tpack.load(tmp_path / "m")(torch.ones(1, 8))


def test_a_gguf_file_may_go_back(tmp_path):
    write_model(tmp_path / "a.gguf", values(), Type.TQ2_0, "llama")
    (note,) = said(tpack.convert(tmp_path / "a.gguf", tmp_path / "m"))
    assert note.endswith("or run it with llama.cpp after an export to gguf")


def test_what_can_be_run_is_not_spoken_of(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_(TERNARY)
    assert not said(tpack.convert(model, tmp_path / "a", example_args=(torch.ones(1, 8),)))
    assert not said(tpack.convert({"weight": TERNARY}, tmp_path / "b"))


@pytest.mark.parametrize(("config", "count"), [({"model_type": "llama"}, 0), ({}, 1)])
def test_transformers_has_the_forward_of_its_models(tmp_path, config, count):
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({"model.fc.weight": TERNARY}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    assert len(said(tpack.convert(folder, tmp_path / "out"))) == count


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("layers.0.mlp.experts.0.up_proj.weight", {"model_type": "longcat_flash"}, 1),
        ("layers.0.mlp.experts.0.up_proj.weight", {"model_type": "olmoe"}, 0),
        ("layers.0.mlp.experts.0.up_proj.weight", {}, 0),
        ("layers.0.mlp.shared_experts.up_proj.weight", {"model_type": "longcat_flash"}, 0),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_experts_are_warned_of(tmp_path, name, config, count, dry_run):
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({name: TERNARY}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    report = tpack.convert(folder, tmp_path / "out", dry_run=dry_run)
    assert sum("belong to experts" in text for text in report.warnings) == count
