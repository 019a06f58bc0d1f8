"""Decoders captured with a cache: the tokens of transformers, one program for all calls."""

import warnings
from types import SimpleNamespace

import pytest
import torch
import transformers

import tpack
from tpack.build import build_module, program_of
from tpack.capturing.caches import uncachable
from tpack.layerdef import Program, slots

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOWS = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "Llama": {},
    "Gemma3Text": {"head_dim": 8, **WINDOWS},
    "Mistral": {"sliding_window": 7},
    "Qwen3": {"head_dim": 8},
    "BitNet": {},
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "Phi3": {"sliding_window": 9},
    "Gemma2": {"head_dim": 8, **WINDOWS},
    "Olmo2": {},
    "GPTNeoX": {"num_key_value_heads": 4},
    "Cohere2": WINDOWS,
    "StableLm": {},
}
FAST = ("Llama", "Gemma3Text")
IDS = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))


def model_of(family):
    """A model with random weights, large enough that its tokens vary."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family])
    kind = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")
    return livelier(kind(config).eval())


def livelier(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


def built(program, model):
    module, state = build_module(program), model.state_dict()
    module.load_state_dict({slot.name: state[slot.name] for slot in slots(program)})
    return module


def greedy(model, ids, count=64):
    mask = torch.ones_like(ids)
    return model.generate(
        ids, max_new_tokens=count, do_sample=False, attention_mask=mask, pad_token_id=0
    )


@pytest.mark.parametrize(
    "family",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_greedy_tokens_are_those_of_transformers(family):
    model = model_of(family)
    program = tpack.capture(model, (IDS,))
    module = built(program, model)
    assert torch.equal(tpack.generate(module, IDS, max_new_tokens=64), greedy(model, IDS))
    one = IDS[:1, :1]
    assert torch.equal(tpack.generate(module, one, max_new_tokens=9), greedy(model, one, 9))
    with torch.no_grad():
        for ids in (IDS, IDS[:1, :5]):  # without a cache
            torch.testing.assert_close(module(ids)["logits"], model(ids).logits, rtol=0, atol=1e-3)
    assert Program.from_dict(program.to_dict()) == program


def test_a_file_its_source_and_what_is_saved_again_decode(tmp_path):
    model, path = model_of("Llama"), tmp_path / "llama.safetensors"
    tpack.convert(model, path, example_args=(IDS,), quantize="absmean")
    loaded = tpack.load(path)
    expected = tpack.generate(loaded, IDS, max_new_tokens=6)
    assert tpack.verify(path).ok
    names = [one.name for one in tpack.inspect(path).tensors]
    for standalone in (False, True):
        space = {"__name__": "generated"}
        exec(tpack.generate_pytorch_code(program_of(loaded), standalone=standalone), space)
        module = space["LlamaForCausalLM"]().eval()
        module.load_state_dict(loaded.state_dict())
        assert torch.equal(tpack.generate(module, IDS, max_new_tokens=6), expected)
        tpack.save(module, again := tmp_path / f"again{standalone}.safetensors")
        assert torch.equal(tpack.generate(tpack.load(again), IDS, max_new_tokens=6), expected)
        assert tpack.verify(again).ok
        assert [one.name for one in tpack.inspect(again).tensors] == names


OTHERS = {"Lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}}


@pytest.mark.parametrize(
    ("family", "reason"),
    [("Mamba", "it keeps more"), ("Lfm2", "it keeps more"), ("T5", "an encoder"), ("Llama", "")],
)
def test_a_model_whose_past_is_more_is_captured_without_a_cache(family, reason):
    config = getattr(transformers, f"{family}Config")(**OTHERS.get(family, {}))
    model = SimpleNamespace(config=config)
    found = uncachable(model, {"input_ids": IDS}, None)
    assert found.startswith(reason) or reason in found
    assert bool(found) is bool(reason)


def test_other_arguments_and_fixed_sizes_leave_the_cache_out():
    model = model_of("Llama")
    with pytest.warns(UserWarning, match="the example gives attention_mask, input_ids"):
        program = tpack.capture(model, (IDS,), {"attention_mask": torch.ones_like(IDS)})
    assert not any(param.is_cache for param in program.by_name[program.root].params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = tpack.capture(model, (IDS,), {"use_cache": False})
    assert not any(param.is_cache for param in program.by_name[program.root].params)
