"""A model of one layer around the matrix, for the tools that quantize nothing smaller."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

#: Where the matrix lies in the model.
NAME = "model.layers.0.mlp.up_proj"


def save(weight, folder: Path) -> None:
    """Write the model and a tokenizer of one word as transformers does."""
    rows, columns = weight.shape
    config = LlamaConfig(
        hidden_size=columns,
        intermediate_size=rows,
        num_hidden_layers=1,
        num_attention_heads=8,
        vocab_size=64,
    )
    model = LlamaForCausalLM(config)
    model.get_submodule(NAME).weight.data = torch.from_numpy(weight)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a").save_pretrained(folder)
