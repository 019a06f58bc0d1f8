"""Small ternary models of transformers, and what they are packed to and compute."""

import json
import re

import torch
import transformers

import tpack
import tpack.hf

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))


def ternarize(model, scale=0.03125):
    """Make every matrix but embeddings and heads ternary."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and not re.search(r"emb|lm_head|wte|wpe|score", name):
                trits = torch.randint(-1, 2, weight.shape, generator=generator)
                weight.copy_(trits * scale)
            elif weight.dim() == 1:
                weight.add_(torch.rand(weight.shape, generator=generator) / 8)
    return model.eval()


def make(config, cls=transformers.AutoModelForCausalLM, **options):
    torch.manual_seed(0)
    return ternarize(cls.from_config(config), **options)


def llama(**options):
    return make(transformers.LlamaConfig(**SIZES | options))


def packed_folder(model, folder, config=None, **options):
    """A saved model, converted."""
    plain, packed = folder / "plain", folder / "packed"
    model.save_pretrained(plain)
    found = json.loads((plain / "config.json").read_text()) | (config or {})
    (plain / "config.json").write_text(json.dumps(found))
    tpack.convert(plain, packed, **{"capture": False} | options)
    return packed


def load(folder, cls="AutoModelForCausalLM", **options):
    return getattr(transformers, cls).from_pretrained(folder, **options)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids)[0]


def generate(model):
    """The tokens that it finds likeliest after those of ``IDS``."""
    return model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max())


def same_bytes(one, other, names=("model.safetensors",)):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def change(folder, tmp_path, edit):
    """A copy of a packed folder with other tensors, described as if they were all."""
    copied = tmp_path / "changed"
    copied.mkdir()
    plain = tpack.unpack(folder)
    edit(plain)
    tpack.convert(plain, copied / "model.safetensors")
    (copied / "config.json").write_text((folder / "config.json").read_text())
    return copied
