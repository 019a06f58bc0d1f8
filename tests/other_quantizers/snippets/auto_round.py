"""auto-round: ``AutoRound`` with the scheme W2A16 and no tuning, saved in its own format."""

import tempfile

import tiny_llama
from auto_round import AutoRound
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def quantize(weight, mode):
    with tempfile.TemporaryDirectory() as folder:
        tiny_llama.save(weight, folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        options = {"iters": 0, "disable_opt_rtn": True, "sym": mode == "symmetric"}
        rounder = AutoRound(model, tokenizer, scheme="W2A16", **options)
        model, _ = rounder.quantize()
        returned = model.get_submodule(tiny_llama.NAME).weight.clone()
        rounder.save_quantized(f"{folder}/quantized", format="auto_round")
        state = load_file(f"{folder}/quantized/model.safetensors")
    parts = [state[f"{tiny_llama.NAME}.{part}"] for part in ("qweight", "qzeros", "scales")]
    return returned, parts
