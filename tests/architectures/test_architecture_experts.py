"""Folders with a matrix for each expert are captured, under the names of their files."""

import json
import re
import shutil

import pytest
import torch
from hf_folders import IDS, close, load, logits
from hf_mixtures import FAMILIES, mixture
from running import from_source
from safetensors.torch import load_file, save_file

import tpack
from tpack.nn import by_expert

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
#: The families that no op is missing for.
CAPTURED = [family for family in FAMILIES if family != "deepseek_v2"]
FAST = ("mixtral", "gpt_oss")


def edited(folder, change):
    """Change the tensors of a saved model."""
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def why(report):
    return next(note for note in report.notes if "captured" in note)


@pytest.mark.parametrize(
    "family",
    [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in CAPTURED],
)
def test_64_greedy_tokens_are_those_of_transformers(family, tmp_path):
    model = mixture(family, max_position_embeddings=128)
    model.save_pretrained(tmp_path / "plain")
    report = tpack.convert(tmp_path / "plain", tmp_path / "packed", exact=True)
    assert any("no difference, to the bit" in note for note in report.notes)
    expected = model.generate(IDS, max_new_tokens=64, **GREEDY)
    loaded = tpack.load(tmp_path / "packed")
    assert torch.equal(tpack.generate(loaded, IDS, max_new_tokens=64), expected)
    alone = from_source(tpack.capture(loaded, (IDS,)), standalone=True)
    alone.load_state_dict(loaded.state_dict())
    assert torch.equal(tpack.generate(alone, IDS, max_new_tokens=64), expected)
    assert tpack.verify(tmp_path / "packed", tmp_path / "plain").ok
    close(logits(load(tmp_path / "packed")), logits(model))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Mixtral whose matrices have scales of several granularities."""
    folder = tmp_path_factory.mktemp("mixtral")
    mixture(max_position_embeddings=128).save_pretrained(folder)

    def change(state):
        torch.manual_seed(1)
        for name, weight in state.items():
            if name.endswith("w3.weight"):
                weight.copy_(weight.sign() * (torch.rand(len(weight), 1) + 0.5))
            if name.endswith("1.w1.weight"):
                weight.copy_(weight.sign() * (torch.rand(1, weight.shape[1]) + 0.5))
            if name.endswith("2.w2.weight"):
                weight.normal_(std=0.02)

    edited(folder, change)
    return folder


def test_each_matrix_keeps_its_name_its_scale_and_its_bits(plain, tmp_path):
    report = tpack.convert(plain, tmp_path / "packed")
    described = tpack.convert(plain, tmp_path / "described", capture=False)
    assert {row.name for row in report.tensors} == {row.name for row in described.tensors}
    rows = {row.name: row for row in report.tensors}
    prefix = "model.layers.0.block_sparse_moe.experts."
    found = [rows[f"{prefix}{name}.weight"].scale for name in ("0.w1", "1.w1", "1.w3")]
    assert found == ["column", "column", "row"]  # equal layers share the finest
    assert rows[f"{prefix}2.w2.weight"].action == "kept"
    loaded = tpack.load(tmp_path / "packed")
    expected = load(plain)
    with torch.no_grad():
        close(loaded(IDS)["logits"], logits(expected))
    assert tpack.verify(tmp_path / "packed", plain).ok
    source = tpack.generate_pytorch_code(tpack.capture(loaded, (IDS,)))
    assert "outputs = by_expert(self.experts, rows, ids)" in source
    assert "MixtralExpert(), MixtralExpert(), MixtralExpert2(), MixtralExpert()" in source
    assert "class MixtralDecoderLayer(nn.Module)" in source
    tpack.save(loaded, tmp_path / "again.safetensors")
    saved = tpack.load(tmp_path / "again.safetensors")
    assert torch.equal(saved(IDS)["logits"], loaded(IDS)["logits"])


def test_a_token_meets_its_own_experts_only(plain, tmp_path):
    tpack.convert(plain, tmp_path / "packed")
    block = tpack.load(tmp_path / "packed").model.layers[0].block_sparse_moe
    seen = []
    for i, expert in enumerate(block.experts):
        expert.register_forward_hook(lambda *_, i=i: seen.append(i))
    x = torch.randn(1, 1, 64)
    with torch.no_grad():
        chosen = set(torch.topk(block.gate(x.flatten(0, 1))[1], 2).indices.tolist()[0])
        block(x)
    assert len(seen) == 2 == len(chosen)
    assert by_expert(block.experts, x[:, 0], torch.tensor([seen[0]])).shape == (1, 64)


MISSING = r"1 of 4 matrices of model\.layers\.0\.mlp\.experts\.\* are not in the files: .*2\.w2\.w"


@pytest.mark.parametrize(
    ("gone", "config", "problem"),
    [
        ("experts.2.w2", {}, MISSING),
        (
            "no",
            {"num_local_experts": 3},
            r"experts\.3\.w\d\.weight' has no place .* 3 experts by c",
        ),
        ("no", {"intermediate_size": 128}, r"experts\.\d.w\d.weight' has shape \(.* in Mixtral"),
    ],
)
def test_experts_that_do_not_fit_are_named(gone, config, problem, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "plain")
    edited(folder, lambda state: [state.pop(name) for name in list(state) if gone + "." in name])
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | config))
    assert re.search(problem, why(tpack.convert(folder, tmp_path / "packed")))
