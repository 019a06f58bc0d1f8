"""Find the scales of a ternary model, whatever shares them, and export it to GGUF.

The model is a small Llama in float16 whose matrices are ternary, as published ones are: with one
scale for a tensor, for a row, or for every 256 columns, and nothing that says so. Detection finds
each, and packs it losslessly. The export writes the same trits and scales into blocks of
llama.cpp, of two bits (TQ2_0) or 1.7 (TQ1_0), and the ``gguf`` package reads them back, equal to
the floats of the start. Needs transformers and gguf, and no network; about ten seconds.

    python examples/groups_to_gguf.py
"""

import tempfile
from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

import tpack
from tpack import export

HEADS, KEYS = 8, 4
#: What shares a scale in each layer: the tensor, a row, or so many columns of a row.
SCALES = {"q": "row", "k": "row", "v": "row", "o": "tensor", "gate": 256, "up": 256, "down": 256}
#: What llama.cpp calls the tensors of a layer.
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
NAMES |= {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}


def ternary(weight: Tensor, shared: int | str) -> Tensor:
    """The weight in {-s, 0, s}, s the mean of |w| over what shares it."""
    columns = shared if isinstance(shared, int) else weight.shape[1]
    groups = weight.unflatten(1, (-1, columns))
    over = (0, 1, 2) if shared == "tensor" else (2,)
    scale = groups.abs().mean(over, keepdim=True).half()
    return ((groups / scale).round().clamp(-1, 1) * scale).flatten(1)


def make_model(folder: Path) -> dict[str, Tensor]:
    """Save a model; the weights that an exporter of GGUF should write, by their names there."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=512,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).half()
    expected = {}
    for path, module in model.named_modules():
        kind = path.rpartition(".")[2].removesuffix("_proj")
        if kind not in SCALES:
            continue
        weight = module.weight.data = ternary(module.weight.data, SCALES[kind])
        if kind in {"q", "k"}:  # llama.cpp interleaves the two halves of each head
            heads = HEADS if kind == "q" else KEYS
            weight = weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        expected[f"blk.{path.split('.')[2]}.{NAMES[kind]}.weight"] = weight
    model.save_pretrained(folder)
    return expected


def main(folder: Path) -> None:
    """Make, convert, export, read back."""
    expected = make_model(folder / "llama")

    report = tpack.convert(folder / "llama", folder / "llama.tpack", exact=True)
    found = Counter(tensor.scale for tensor in report.tensors if tensor.action == "packed")
    print("scales found: " + ", ".join(f"{scale} ×{found[scale]}" for scale in sorted(found)))
    assert tpack.verify(folder / "llama.tpack", folder / "llama").ok

    for kind in ("tq2_0", "tq1_0"):
        path = folder / f"{kind}.gguf"
        export(folder / "llama.tpack", "gguf", path, type=kind)
        tensors = [one for one in gguf.GGUFReader(path).tensors if one.name in expected]
        equal = sum(
            np.array_equal(gguf.dequantize(one.data, one.tensor_type), expected[one.name].float())
            for one in tensors
        )
        names = {one.tensor_type.name for one in tensors}
        size = sum(one.n_bytes for one in tensors)
        print(
            f"{', '.join(names)}: {equal} of {len(expected)} weights equal, bit for bit, as the "
            f"gguf package reads them; {size} bytes"
        )


if __name__ == "__main__":
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
