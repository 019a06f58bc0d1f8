"""Captured models compute what the originals do, as built modules and as generated source."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import tpack
from tpack import generate_pytorch_code
from tpack.build import build_module
from tpack.errors import LayerDefError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CAUSAL = TEXT | {"num_key_value_heads": 2}


def ids(batch, length):
    return {"input_ids": torch.randint(3, 90, (batch, length))}


def pixels(batch, _):
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def sound(batch, _):
    return {"input_features": torch.randn(batch, 16, 100)}


def whisper():
    config = transformers.WhisperConfig(
        d_model=64, encoder_layers=3, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=96,
        max_source_positions=50, num_mel_bins=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperModel(config).get_encoder()


FAMILIES = {
    "llama": (lambda t: t.LlamaForCausalLM(t.LlamaConfig(**CAUSAL)), ids),
    "mistral": (lambda t: t.MistralForCausalLM(t.MistralConfig(**CAUSAL, sliding_window=None)), ids),
    "qwen3": (lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**CAUSAL, head_dim=16)), ids),
    "bitnet": (lambda t: t.BitNetForCausalLM(t.BitNetConfig(**CAUSAL)), ids),
    "gpt2": (
        lambda t: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=96, n_embd=64, n_layer=3, n_head=4, n_positions=64)
        ),
        ids,
    ),
    "bert": (lambda t: t.BertModel(t.BertConfig(**TEXT)), ids),
    "t5": (
        lambda t: t.T5EncoderModel(
            t.T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_heads=4)
        ),
        ids,
    ),
    "vit": (
        lambda t: t.ViTModel(
            t.ViTConfig(
                hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                num_attention_heads=4, image_size=32, patch_size=8,
            )  # fmt: skip
        ),
        pixels,
    ),
    "resnet": (
        lambda t: t.ResNetModel(
            t.ResNetConfig(
                embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic"
            )
        ),
        pixels,
    ),
    "whisper": (lambda _: whisper(), sound),
}  # fmt: skip


def plain(result):
    """The one tensor of an output that is compared."""
    if isinstance(result, torch.Tensor):
        return result
    if isinstance(result, tuple):
        return result[0]
    return result["logits"] if "logits" in result else result["last_hidden_state"]


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family):
    torch.manual_seed(0)
    make, inputs = FAMILIES[family]
    model = make(transformers).eval()
    fixed = {"use_cache": False} if hasattr(model, "lm_head") else {}
    program = tpack.capture(model, (), inputs(2, 9) | fixed)
    source = generate_pytorch_code(program)
    assert len(source.splitlines()) < 220
    namespace = {}
    exec(source, namespace)
    built, generated = build_module(program), namespace[program.root]().eval()
    for module in (built, generated):
        missing, _ = module.load_state_dict(model.state_dict(), strict=False)
        assert not missing  # tied tensors are stored once
    for batch, length in ((2, 9), (3, 5), (1, 14)):
        given = inputs(batch, length)
        with torch.no_grad():
            wanted = plain(model(**given, **fixed))
            for module in (built, generated):
                assert torch.allclose(plain(module(**given)), wanted, atol=1e-5, rtol=0)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


def ternary_mlp():
    torch.manual_seed(0)
    model = Mlp().eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.copy_(torch.randint(-1, 2, (8, 8)) * 0.5)
    return model


def test_convert_captures_the_whole_model(tmp_path):
    model, x = ternary_mlp(), torch.randn(3, 8)
    tpack.convert(
        model, tmp_path / "m.safetensors", exact=True, exclude=["head*"], example_args=(x,)
    )
    loaded = tpack.load(tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.allclose(loaded(x), model(x), atol=1e-5)
    assert tpack.verify(tmp_path / "m.safetensors", model).ok


def test_an_exported_program(tmp_path):
    model, x = ternary_mlp(), torch.randn(3, 8)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    tpack.convert(tmp_path / "m.pt2", tmp_path / "m.safetensors", exact=True, exclude=["head*"])
    with torch.no_grad():
        assert torch.allclose(tpack.load(tmp_path / "m.safetensors")(x), model(x), atol=1e-5)


def test_an_op_outside_the_table_is_named():
    class Sorts(nn.Module):
        def forward(self, x):
            return torch.sort(x).values

    with pytest.raises(LayerDefError, match="sort"):
        tpack.capture(Sorts().eval(), (torch.randn(3, 8),))
