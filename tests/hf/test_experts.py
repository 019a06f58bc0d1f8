"""Mixtures of experts whose matrices are packed: loaded, equal to the plain model, saved."""

import json
import re
import shutil

import pytest
import torch
import transformers
from hf_folders import IDS, close, load, logits, same_bytes
from hf_mixtures import FAMILIES, MOE, mixture
from safetensors.torch import load_file, save_file

import tpack
import tpack.hf
from tpack.errors import InputError, UnsupportedError
from tpack.hf.experts import PackedExperts
from tpack.nn import TernaryLinear, freeze, ternary_expert_linear, unfreeze

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FAST = ("mixtral", "deepseek_v3", "gpt_oss", "granitemoe")


def converted(model, folder, **options):
    model.save_pretrained(folder / "plain")
    return tpack.convert(folder / "plain", folder / "packed", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Mixtral, packed; beside it the plain folder."""
    path = tmp_path_factory.mktemp("mixtral")
    converted(mixture(), path)
    return path


def of_experts(model):
    return [name for name in model.state_dict() if "expert" in name and name.endswith("_packed")]


def tokens(model, count=8):
    return model.generate(IDS, max_new_tokens=count, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize(
    "family",
    [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_a_family_runs_packed(family, tmp_path):
    report = converted(mixture(family), tmp_path, exact=True)
    assert not any("experts" in warning for warning in report.warnings)
    plain, model = load(tmp_path / "plain"), load(tmp_path / "packed")
    assert len(of_experts(model)) == FAMILIES[family][1]
    close(logits(model), logits(plain))
    assert torch.equal(tokens(model), tokens(plain))
    assert tpack.verify(tmp_path / "packed", tmp_path / "plain").ok
    model.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", tmp_path / "packed")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_32_tokens_are_those_of_the_plain_model(family, dtype, tmp_path):
    converted(mixture(family, dtype), tmp_path)
    plain = load(tmp_path / "plain", dtype=dtype)
    model = load(tmp_path / "packed", dtype=dtype)
    assert torch.equal(tokens(model, 32), tokens(plain, 32))


def test_an_expert_without_a_token_is_not_computed(folder):
    model = load(folder / "packed")
    plain = load(folder / "plain")
    for one in (model, plain):
        one.model.layers[0].mlp.gate.weight.data[2:] = -10.0  # experts 2 and 3
        one.model.embed_tokens.weight.data.abs_()
        one.model.layers[0].post_attention_layernorm.weight.data.abs_()
    seen = []
    experts = model.model.layers[0].mlp.experts
    for name, module in experts.named_modules():
        if isinstance(module, TernaryLinear):
            module.register_forward_hook(lambda *_, name=name: seen.append(name[0]))
    close(logits(model), logits(plain))
    with torch.no_grad():
        one = torch.ones(3, 1, dtype=torch.long)
        seen.clear()
        experts(torch.rand(3, 64), one, torch.ones(3, 1))
    assert set(seen) == {"1"}


def test_no_tokens_at_all(folder):
    experts = load(folder / "packed").model.layers[0].mlp.experts
    found = experts(torch.rand(0, 64), torch.ones(0, 2, dtype=torch.long), torch.ones(0, 2))
    assert found.shape == (0, 64)


def test_matrices_keep_scales_of_their_own(tmp_path):
    """Other granularities for w1 and w3, and for one expert."""
    mixture().save_pretrained(tmp_path / "plain")
    path = tmp_path / "plain" / "model.safetensors"
    state = load_file(path)
    for name, weight in state.items():
        if name.endswith("w3.weight"):
            weight.copy_(weight.sign() * (torch.rand(len(weight), 1) + 0.5))
        if name.endswith("1.w1.weight"):
            weight.copy_(weight.sign() * (torch.rand(1, weight.shape[1]) + 0.5))
    save_file(state, path, metadata={"format": "pt"})
    tpack.convert(tmp_path / "plain", tmp_path / "packed", exact=True, capture=False)
    model = load(tmp_path / "packed")
    experts = model.model.layers[0].mlp.experts
    assert isinstance(experts, PackedExperts)
    shapes = {n: tuple(s.shape) for n, s in experts.named_parameters()}
    assert shapes["0.w1.weight_scale"] == (1,)
    assert shapes["1.w1.weight_scale"] == (1, 64)
    assert shapes["1.w3.weight_scale"] == (96, 1)
    close(logits(model), logits(load(tmp_path / "plain")))


def test_experts_kept_as_floats_beside_packed_ones(folder, tmp_path):
    kept = ["*experts.1.*", "*experts.*.w2.weight"]
    tpack.convert(folder / "plain", tmp_path / "packed", exclude=kept)
    model = load(tmp_path / "packed")
    assert len(of_experts(model)) == 6
    close(logits(model), logits(load(folder / "plain")))
    model.save_pretrained(tmp_path / "again")
    assert same_bytes(tmp_path / "again", tmp_path / "packed")


def test_layers_of_floats_beside_packed_ones(tmp_path):
    converted(mixture(num_hidden_layers=2), tmp_path, exclude=["*layers.1.*experts*"])
    model = load(tmp_path / "packed")
    assert len(of_experts(model)) == 12
    close(logits(model), logits(load(tmp_path / "plain")))


def test_the_base_model_loads_too(folder):
    model = load(folder / "packed", "AutoModel")
    close(logits(model), logits(load(folder / "plain", "AutoModel")))


def test_the_implementation_of_floats_does_not_matter(folder):
    model = load(folder / "packed", experts_implementation="eager")
    close(logits(model), logits(load(folder / "plain")))


@pytest.mark.parametrize("kind", ["packed", "kept"])
@pytest.mark.parametrize("name", ["experts.2.w3", "experts.2.w2"])
def test_a_missing_matrix_is_named(folder, tmp_path, name, kind):
    plain, options = tmp_path / "plain", {"exclude": ["*experts.2.*"]} if kind == "kept" else {}
    shutil.copytree(folder / "plain", plain)
    state = load_file(plain / "model.safetensors")
    del state[f"model.layers.0.block_sparse_moe.{name}.weight"]
    save_file(state, plain / "model.safetensors", metadata={"format": "pt"})
    tpack.convert(plain, tmp_path / "packed", **options)
    with pytest.raises(InputError, match=rf"{name}.weight' is missing"):
        load(tmp_path / "packed")


def test_an_expert_too_many_is_named(folder, tmp_path):
    copied = shutil.copytree(folder / "packed", tmp_path / "copied")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_local_experts": 3}))
    with pytest.raises(InputError, match=r"experts.3.w1.weight' has no place .* has 3 experts"):
        load(copied)


def test_experts_of_another_size_are_named(folder, tmp_path):
    copied = shutil.copytree(folder / "packed", tmp_path / "copied")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(InputError, match=r"has shape \(96, 64\), expected \(128, 64\)"):
        load(copied)


@pytest.mark.parametrize("family", ["llama4_text", pytest.param("jetmoe", marks=pytest.mark.slow)])
def test_other_experts_are_refused_by_their_pattern(family, tmp_path):
    options = {"num_local_experts": 4, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1}
    own = {"llama4_text": options | {"head_dim": 16}, "jetmoe": {"num_local_experts": 4}}[family]
    config = transformers.AutoConfig.for_model(family, **MOE | own)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 3:
                weight.copy_(torch.randint(-1, 2, weight.shape) * 0.125)
    report = converted(model, tmp_path)
    assert any("experts (*.experts.*)" in warning for warning in report.warnings)
    with pytest.raises(
        UnsupportedError, match=r"'\*\.experts\.\*.*exclude=\['\*\.experts"
    ) as found:
        load(tmp_path / "packed")
    kept = re.findall(r"'([^']+)'", str(found.value).partition("exclude=")[2])
    tpack.convert(tmp_path / "plain", tmp_path / "dense", exclude=kept, quantize="absmean")
    assert not any("experts" in name for name in of_experts(load(tmp_path / "dense")))


@pytest.mark.parametrize("family", [pytest.param("mixtral", marks=pytest.mark.slow), "gpt_oss"])
def test_experts_are_trained_and_packed_again(family, tmp_path):
    converted(mixture(family), tmp_path)
    model = load(tmp_path / "packed")
    before = logits(model)
    unfreeze(model)
    close(logits(model), before)
    model(IDS).logits.sum().backward()
    masters = [p for n, p in model.named_parameters() if "experts" in n and p.dim() >= 2]
    assert all(p.grad is not None for p in masters)
    freeze(model)
    close(logits(model), before)


@pytest.mark.parametrize("layout", ["t2", "t5"])
@pytest.mark.parametrize("scale", [(1,), (4, 6, 1), (4, 6, 3), (1, 1, 96)])
def test_expert_linear_is_that_of_the_chosen_matrices(scale, layout):
    from tpack.nn.reference import dequantize, pack_trits, ternary_expert_linear as reference

    trits, scales = torch.randint(-1, 2, (4, 6, 96)), torch.rand(scale) + 0.5
    packed, ids, x = pack_trits(trits, layout), torch.tensor([[3, 1], [3, 0]]), torch.rand(2, 2, 96)
    weight = dequantize(packed, scales, (4, 6, 96), layout=layout)
    expected = torch.einsum("abi,aboi->abo", x, weight[ids])
    for compute in (ternary_expert_linear, reference):
        close(compute(x, packed, scales, ids, layout=layout), expected)
        with pytest.raises(IndexError, match="4 is out of range for 4 experts"):
            compute(x, packed, scales, ids + 1, layout=layout)

    class Layer(torch.nn.Module):
        def forward(self, x, ids):
            return ternary_expert_linear(x, packed, scales, ids, layout=layout)

    if layout == "t5":  # one of them is enough
        return
    exported = torch.export.export(Layer(), (x, ids)).module()
    close(exported(x, ids), expected)
