"""Time a Llama of 1.1 B ternary weights as bfloat16, packed, and in llama.cpp.

``python tests/bench/bench_generate.py [LAYERS]`` makes the model with random trits, converts it,
and generates with transformers from both folders; where llama-cpp-python is installed, llama.cpp
runs the exported GGUF file (TQ2_0) as well. Each runs in a process of its own, all in turn. The
table has medians, and the highest resident memory of each process.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"

ROUNDS = 3
PROMPT, ANSWER = 256, 32
SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def make(folder: Path, layers: int) -> None:
    """Write the model in bfloat16: linear layers of random trits, one scale each."""
    import transformers
    from transformers.initialization import no_init_weights

    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=layers, dtype=torch.bfloat16)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with no_init_weights():
        model = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" in name:
                trits = torch.randint(-1, 2, weight.shape, dtype=torch.int8)
                weight.copy_(trits).mul_(2.0**-5)  # a scale that GGUF's float16 holds
            elif "norm" in name:
                weight.fill_(1.0)
            else:
                weight.normal_(std=0.02)
    model.save_pretrained(folder)


def in_transformers(folder: Path) -> dict[str, Any]:
    """Time prefill and decoding with ``generate``; both folders come here."""
    import transformers

    import tpack.hf

    assert tpack.hf.TpackQuantizer
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = torch.arange(PROMPT).unsqueeze(0) % SIZES["vocab_size"]

    def run(count: int) -> float:
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return time.perf_counter() - start

    run(2)
    first = [run(1) for _ in range(3)]
    return result(statistics.median(first), run(ANSWER + 1) - statistics.median(first))


def in_llama_cpp(path: Path) -> dict[str, Any]:
    """Time prefill and decoding with libllama's own functions."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def silent(*_: object) -> None:
        pass

    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = 1024
    settings.n_batch = settings.n_ubatch = PROMPT
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    context = llama_cpp.llama_init_from_model(model, settings)

    def run(tokens: list[int]) -> float:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        start = time.perf_counter()
        assert not llama_cpp.llama_decode(
            context, llama_cpp.llama_batch_get_one(array, len(tokens))
        )
        llama_cpp.llama_synchronize(context)
        return time.perf_counter() - start

    run([1])
    firsts = []
    for _ in range(3):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        firsts.append(run(list(range(PROMPT))))
    return result(statistics.median(firsts), sum(run([5]) for _ in range(ANSWER)))


def result(prefill: float, decoding: float) -> dict[str, Any]:
    """Tokens a second of both, and the memory of this process in bytes."""
    # not getrusage: its peak includes that of the process that started this one
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    peak = 1024 * int(line.split()[1])
    return {"prefill": PROMPT / prefill, "decode": ANSWER / decoding, "memory": peak}


def child(kind: str, path: Path) -> dict[str, Any]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, kind, str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Make, convert, export, time in turns, print."""
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    with tempfile.TemporaryDirectory() as folder:
        import tpack

        plain, packed, gguf = (Path(folder) / name for name in ("plain", "packed", "m.gguf"))
        make(plain, layers)
        tpack.convert(plain, packed, exact=True)
        sides = {
            "transformers, bfloat16": ("transformers", plain),
            "transformers, packed": ("transformers", packed),
        }
        try:
            import llama_cpp  # noqa: F401
        except ImportError:
            print("llama-cpp-python is not installed: left out")
        else:
            tpack.export(packed, "gguf", gguf, type="tq2_0")
            sides["llama.cpp, TQ2_0"] = ("llama.cpp", gguf)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, (kind, path) in sides.items():
                found[name].append(child(kind, path))
        sizes = {name: size(path) for name, (_, path) in sides.items()}
    print("| | on disk | memory | 256 tokens in | a token out |\n|---|---|---|---|---|")
    for name, runs in found.items():
        memory, prefill, decode = (
            statistics.median(run[key] for run in runs) for key in ("memory", "prefill", "decode")
        )
        print(
            f"| {name} | {sizes[name] / 1e9:.2f} GB | {memory / 1e9:.1f} GB"
            f" | {prefill:.0f} tokens/s | {decode:.1f} tokens/s |"
        )


def size(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = in_llama_cpp if sys.argv[1] == "llama.cpp" else in_transformers
            print(json.dumps(run(Path(sys.argv[2]))))
    else:
        main()
