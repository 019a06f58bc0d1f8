"""A small model of each family that the manual names: converted, run packed, captured whole."""

import pytest
import torch
import transformers
from families import FAMILIES, FAST, PAGE, short_table, table
from hf_folders import IDS, SIZES, close, generate, load, logits, packed_folder
from torch import nn
from transformers.pytorch_utils import Conv1D

import tpack
from tpack.errors import LayerDefError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tried(names):
    """Parameters of a test: all, of which only a few are fast."""
    return [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(names)
    ]


def model_of(family):
    """Random weights, ternary in every linear layer but the output head."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SIZES | TOKENS)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    with torch.no_grad():
        for layer in layers:
            if layer is not model.get_output_embeddings():
                trits = torch.randint(-1, 2, layer.weight.shape)
                layer.weight.copy_(trits * (torch.rand(1) / 4 + 0.125))
    return model


@pytest.mark.parametrize("family", tried(FAMILIES))
def test_runs_packed_in_transformers(family, tmp_path):
    packed = packed_folder(model_of(family), tmp_path, exact=True)
    assert tpack.verify(packed, tmp_path / "plain").ok
    plain, model = load(tmp_path / "plain"), load(packed)
    assert any(name.endswith("_packed") for name in model.state_dict())
    close(logits(model), logits(plain))
    assert torch.equal(generate(model), generate(plain))


@pytest.mark.parametrize("family", tried(name for name, reason in FAMILIES.items() if not reason))
def test_is_captured_whole(family, tmp_path):
    model = model_of(family)
    path = tmp_path / "m.tpack.safetensors"
    tpack.convert(model, path, example_args=(IDS,), exact=True)
    loaded = tpack.load(path)
    for ids in (IDS, IDS[:1, :5]):  # the sizes are free
        with torch.no_grad():
            close(loaded(ids)["logits"], model(ids).logits)


def test_the_pages_say_what_is_tested():
    assert table() in PAGE.read_text()
    assert short_table() in (PAGE.parents[1] / "README.md").read_text()


def test_a_cache_is_refused_with_what_to_do(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model_of("llama")

        def forward(self, ids):
            return self.model(ids)

    with pytest.raises(LayerDefError, match=r"Set model\.config\.use_cache = False\.$"):
        tpack.convert(Wrapper().eval(), tmp_path / "m.tpack.safetensors", example_args=(IDS,))
