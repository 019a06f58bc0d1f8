"""Time a token of a captured decoder against the same through transformers, both with a cache.

`python tests/bench/bench_tokens.py [LAYERS] [FAMILY]`

A Llama, or a mixture of experts (mixtral, qwen3_moe), with random trits is written in bfloat16
and packed once, with its forward. `tpack.load` runs it by its LayerDefs, and transformers by its
own code, with `tpack.hf`. Both continue the same prompt in one process, token by token in turn,
and choose the same tokens.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_generate
import torch
import transformers

import tpack
import tpack.hf
from tpack.nn import KeyValueCache

PROMPT, TOKENS = 64, 16
SIZES = bench_generate.SIZES | {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 8,
}
EXPERTS = {"hidden_size": 512, "num_experts_per_tok": 2, "vocab_size": 4096}
#: By family: what its config has that differs.
FAMILIES = {
    "llama": {},
    "mixtral": EXPERTS | {"intermediate_size": 1024, "num_local_experts": 8},
    "qwen3_moe": EXPERTS | {"moe_intermediate_size": 512, "num_experts": 8, "head_dim": 64},
}


def make(folder: Path, family: str, layers: int) -> None:
    """Write a model of a family in bfloat16: every matrix but embeddings and routers of trits."""
    config = transformers.AutoConfig.for_model(
        family, **SIZES | FAMILIES[family], num_hidden_layers=layers, dtype=torch.bfloat16
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" in name:
                weight.copy_(torch.randint(-1, 2, weight.shape, dtype=torch.int8)).mul_(2.0**-5)
            elif weight.dim() > 1:
                weight.normal_(std=0.02)
    model.save_pretrained(folder)


def in_turn(captured: Any, model: Any) -> tuple[list[float], list[float]]:
    """Return the seconds of each token, of both."""
    cache, past = KeyValueCache(), None
    ours = theirs = torch.arange(PROMPT).unsqueeze(0)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TOKENS + 1):
        start = time.perf_counter()
        logits = captured(ours, cache)["logits"]
        middle = time.perf_counter()
        found = model(theirs, past_key_values=past, use_cache=True, logits_to_keep=1)
        end = time.perf_counter()
        past = found.past_key_values
        ours, theirs = (one[:, -1].argmax(-1, keepdim=True) for one in (logits, found.logits))
        assert torch.equal(ours, theirs)
        times[0].append(middle - start)
        times[1].append(end - middle)
    return times[0][1:], times[1][1:]  # the first is that of the prompt


def main() -> None:
    """Make, convert, time in turns, print."""
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    family = sys.argv[2] if len(sys.argv) > 2 else "llama"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        plain, packed = Path(folder, "plain"), Path(folder, "packed")
        make(plain, family, layers)
        tpack.convert(plain, packed, exact=True)
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(packed, dtype=torch.bfloat16)
        captured = tpack.load(packed)
        in_turn(captured, model)
        rounds = [in_turn(captured, model) for _ in range(3)]
    middles = [statistics.median(t for one in rounds for t in one[side]) for side in (0, 1)]
    best = [min(t for one in rounds for t in one[side]) for side in (0, 1)]
    for name, middle, least in zip(("captured", "tpack.hf"), middles, best, strict=True):
        print(f"{name}: {1e3 * middle:.1f} ms a token, at best {1e3 * least:.1f}")
    print(f"captured / tpack.hf: {middles[0] / middles[1]:.2f}, at best {best[0] / best[1]:.2f}")


if __name__ == "__main__":
    main()
