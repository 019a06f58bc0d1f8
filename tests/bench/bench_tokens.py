"""Time a token of a captured Llama against the same through transformers, both with a cache.

`python tests/bench/bench_tokens.py [LAYERS]`

A Llama with random trits is written in bfloat16 and packed once, with its forward. `tpack.load`
runs it by its LayerDefs, and transformers by its own code, with `tpack.hf`. Both continue the same
prompt in one process, token by token in turn, and choose the same tokens.
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
bench_generate.SIZES |= {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8}


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
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        plain, packed = Path(folder, "plain"), Path(folder, "packed")
        bench_generate.make(plain, layers)
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
