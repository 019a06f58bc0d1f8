"""One exactly ternary matrix through the quantizers of other systems, and through tpack.

`python tests/other_quantizers/run.py --write` installs the pinned packages into throwaway
environments, runs a snippet for each mode, and writes both tables of docs/why.md. It downloads
gigabytes. `--environments FOLDER` keeps the environments there, for the next run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

import tpack

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
PAGE = README.parent / "docs" / "why.md"
ROWS, COLUMNS, SCALE = 512, 1024, 0.37
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class System:
    """A quantizer that runs in a Python environment of its own.

    Attributes:
        requirements: what pip installs; the first is the system, with its version.
        snippet: of ``snippets/``: how it is called.
        modes: what the snippet is given → what the table says of it. The default comes first.
        dtype: of the matrix, so that s is a number which the system can hold.
        by_hand: which codes and scales the snippet's ``by_hand`` writes, in the table's words.
        target: the target of `tpack export` that writes these codes and scales today.
        alone: whether its requirements contradict those of the others.
    """

    name: str
    requirements: tuple[str, ...]
    snippet: str
    modes: dict[str, str]
    dtype: str = "float32"
    by_hand: str = ""
    target: str = ""
    alone: bool = False

    def begins(self, words: str) -> str:
        """How the row of a mode begins."""
        return f"| {self.name} {self.requirements[0].partition('==')[2]} | {words} | {self.dtype}"


SYSTEMS = (
    System(
        "MLX",
        ("mlx[cpu]==0.32.4",),
        "mlx",
        {"": "`mx.quantize(bits=2)`, groups of 64"},
        by_hand="codes 0, 1, 2; scale s; bias -s",
    ),
    System(
        "torchao",
        ("torchao==0.18.0", TORCH),
        "torchao",
        {
            "SYMMETRIC": "`int2`, groups of 128, `SYMMETRIC`",
            "ASYMMETRIC": "the same, `ASYMMETRIC`",
            "SYMMETRIC_NO_CLIPPING_ERR": "the same, `SYMMETRIC_NO_CLIPPING_ERR`",
        },
        by_hand="codes -1, 0, 1; scale s",
    ),
    System(
        "llm-compressor",
        ("llmcompressor==0.14.0.1", TORCH, "numpy==2.4.6"),
        "llmcompressor",
        {"": "`QuantizationModifier`, scheme `W2A16`"},
        by_hand="codes -1, 0, 1, packed by compressed-tensors; scale s",
        alone=True,
    ),
    System(
        "auto-round",
        ("auto-round==0.16.1", TORCH, "transformers==5.23.0"),
        "auto_round",
        {
            "symmetric": "scheme `W2A16`, no tuning",
            "asymmetric": "the same, `sym=False`",
        },
        dtype="bfloat16",
    ),
    System(
        "GPTQModel",
        ("gptqmodel==7.6.0", TORCH),
        "gptqmodel",
        {
            "symmetric": "`RTN`, 2 bits, groups of 128",
            "asymmetric": "the same, `sym=False`",
        },
        dtype="float16",
        by_hand="codes 0, 1, 2; scale s; zero point 1",
        alone=True,
    ),
    System(
        "hqq",
        ("hqq==0.2.8", TORCH),
        "hqq",
        {
            "optimize=True": "2 bits, groups of 64",
            "optimize=False": "the same, `optimize=False`",
        },
        by_hand="codes 0, 1, 2; scale s; zero point 1",
    ),
    System(
        "optimum-quanto",
        ("optimum-quanto==0.2.7", TORCH),
        "optimum_quanto",
        {"": "`qint2`, groups of 128"},
        by_hand="codes 0, 1, 2; scale s; shift s",
    ),
    System(
        "ONNX Runtime",
        ("onnxruntime==1.31.1", "onnx==1.23.2", "onnx-ir==1.1.0"),
        "onnxruntime",
        {
            "symmetric": "`MatMulNBitsQuantizer`, 2 bits, `is_symmetric=True`",
            "asymmetric": "the same, `is_symmetric=False`",
        },
        by_hand="codes 0, 1, 2; scale s; zero point 1",
    ),
    System(
        "coremltools",
        ("coremltools==9.0", "scikit-learn==1.9.1"),
        "coremltools",
        {
            "kmeans": "`palettize_weights`, 2 bits, `kmeans`",
            "uniform": "the same, `uniform`",
            "unique": "the same, `unique`",
        },
    ),
    System(
        "LiteRT, AI Edge Quantizer",
        ("ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0"),
        "litert",
        {"": "recipe `dynamic_wi2c_afp32`"},
    ),
    System(
        "llama.cpp, in xllamacpp",
        ("xllamacpp==2026.10.11549",),
        "llama_cpp",
        {"TQ2_0": "`TQ2_0`", "TQ1_0": "`TQ1_0`", "Q2_0": "`Q2_0`", "Q2_K": "`Q2_K`"},
    ),
    System(
        "llama.cpp, in xllamacpp",
        ("xllamacpp==2026.10.11549",),
        "llama_cpp",
        {"TQ2_0": "`TQ2_0`", "TQ1_0": "`TQ1_0`", "Q2_0": "`Q2_0`"},
        dtype="float16",
        by_hand="`TQ2_0`: codes 0, 1, 2; scale s, which is a float16",
        target="gguf",
    ),
    System(
        "transformers",
        ("transformers==5.23.0", TORCH),
        "bitnet",
        {"": "absmean, as its `bitnet` layers round masters"},
        by_hand="`bitnet`: codes 0, 1, 2; factor s, or divisor 1/s",
        target="hf-bitnet",
    ),
    System(
        "onebitllms",
        ("onebitllms==0.0.4", TORCH, "transformers==5.23.0", "triton==3.9.0"),
        "onebitllms",
        {"": "`quantize_to_1bit` (absmean)"},
        dtype="bfloat16",
    ),
    System(
        "Brevitas",
        ("brevitas==0.13.4", TORCH),
        "brevitas",
        {"": "`SignedTernaryWeightPerTensorConst`"},
        by_hand="`weight_scaling_const=s`",
        alone=True,
    ),
)
#: The layouts that tpack itself is tried with, and what the table says of them.
LAYOUTS = {"t2": "`convert(exact=True)`", "t5": 'the same, `layout="t5"`'}
#: The rows of the README are the first of each of these.
SHORT = (
    "**tpack**",
    "MLX",
    "torchao",
    "llm-compressor",
    "optimum-quanto",
    "ONNX Runtime",
    "llama.cpp",
    "LiteRT",
)
HEAD = """\
| system | mode | dtype | -s | 0 | +s | equal | largest error | bits per weight |
|---|---|---|---|---|---|---|---|---|"""
HAND_HEAD = """\
| system | by hand | comes back | `tpack export` writes it |
|---|---|---|---|"""


def matrix(dtype: str) -> tuple[np.ndarray, np.float32]:
    """Trits, the same for every system, and the number that s is in this dtype."""
    trits = np.random.default_rng(0).integers(-1, 2, (ROWS, COLUMNS)).astype(np.int8)
    return trits, torch.tensor(SCALE, dtype=getattr(torch, dtype)).float().numpy()[()]


def levels(trit: int, values: np.ndarray, scale: np.float32) -> str:
    """What became of the weights of a trit, in units of s: the most frequent first."""
    ratios = values / scale
    rounded = np.round(ratios, 2)
    found, counts = np.unique(rounded, return_counts=True)
    if len(found) > 3:
        return f"{found[0]:g} … {found[-1]:g}"
    texts = []
    for level in found[np.argsort(-counts)]:
        mean = float(np.mean(ratios[rounded == level]))
        near = Fraction(mean).limit_denominator(4)
        if abs(near - mean) > 1e-3:
            texts.append(f"{mean:.3f}")
        elif near == trit and (values[rounded == level] != trit * scale).any():
            texts.append(f"≈ {near}")
        else:
            texts.append(str(near))
    return " or ".join(texts)


def line(begins: str, dtype: str, returned: np.ndarray, size: int) -> str:
    """A row of the table. All numbers in it are computed here."""
    trits, scale = matrix(dtype)
    weight = trits * scale
    by_trit = [levels(trit, returned[trits == trit], scale) for trit in (-1, 0, 1)]
    equal = int(100 * np.mean(returned == weight))
    error = float(np.max(np.abs(returned - weight)) / scale)
    digits = 2 if error > 0.01 else 1
    worst = f"{error:.{digits}g} s" if error else "**0**"
    bits = 8 * size / trits.size
    return " | ".join([begins, *by_trit, f"{equal} %", worst, f"{bits:.2f} |"])


def own_lines() -> list[str]:
    """The rows of tpack."""
    trits, scale = matrix("float32")
    weight = torch.from_numpy(trits * scale)
    lines = []
    for layout, words in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "matrix.safetensors"
            tpack.convert({"weight": weight}, path, exact=True, layout=layout)
            returned = tpack.unpack(path)["weight"].numpy()
            begins = f"| **tpack** | {words} | float32"
            lines.append(line(begins, "float32", returned, path.stat().st_size))
    return lines


def hand_line(system: System, outcome: str) -> str:
    """A row of the second table."""
    target = f"`--to {system.target}`" if system.target else "—"
    return f"| {system.name} | {system.by_hand} | {outcome} | {target} |"


def environments(folder: Path) -> Iterator[tuple[Path, list[System]]]:
    """The Python of each environment, made where it is missing, and the systems in it."""
    together = [system for system in SYSTEMS if not system.alone]
    for group in [together, *([system] for system in SYSTEMS if system.alone)]:
        place = folder / (group[0].snippet if group[0].alone else "together")
        python = place / "bin" / "python"
        if not place.exists():
            wanted = sorted({text for system in group for text in system.requirements})
            print("installing", *wanted, file=sys.stderr)
            venv.create(place, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        yield python, group


def call(python: Path, system: System, mode: str) -> dict[str, np.ndarray]:
    """What the snippet of a system returns."""
    trits, scale = matrix(system.dtype)
    with tempfile.TemporaryDirectory() as folder:
        source, result = f"{folder}/in.npz", f"{folder}/out.npz"
        np.savez(source, weight=trits * scale, trits=trits, scale=scale)
        snippet = HERE / "snippets" / f"{system.snippet}.py"
        command = [python, HERE / "call.py", snippet, source, result, mode]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, cwd=folder, env=offline, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{system.name} {mode}: {done.stderr}")
        return dict(np.load(result))


def tables(folder: Path) -> tuple[str, str]:
    """Both tables, in Markdown."""
    lines, hands = {}, {}
    for python, group in environments(folder):
        for system in group:
            for mode, words in system.modes.items():
                result = call(python, system, mode)
                begins = system.begins(words)
                size = int(result["bytes"])
                lines[begins] = line(begins, system.dtype, result["returned"], size)
                print(lines[begins], file=sys.stderr)
            if system.by_hand:
                trits, scale = matrix(system.dtype)
                exact = np.array_equal(result["by_hand"], trits * scale)
                hands[system.name, system.dtype] = hand_line(
                    system, "exact" if exact else "not exact"
                )
    ordered = [lines[s.begins(words)] for s in SYSTEMS for words in s.modes.values()]
    by_hand = [hands[s.name, s.dtype] for s in SYSTEMS if s.by_hand]
    return "\n".join([HEAD, *own_lines(), *ordered]), "\n".join([HAND_HEAD, *by_hand])


def marked(name: str) -> re.Pattern[str]:
    """Where a table stands in a page."""
    return re.compile(rf"(<!-- {name}: begin -->\n\n)(.*?)(\n\n<!-- {name}: end -->)", re.DOTALL)


def write(page: Path, name: str, table: str) -> None:
    """Put a table between its markers."""
    text, places = marked(name).subn(lambda at: at[1] + table + at[3], page.read_text())
    if places != 1:
        sys.exit(f"{page.name}: found {places} places for the table '{name}', expected one")
    page.write_text(text)


def short(table: str) -> str:
    """The table of the README: fewer rows of the whole one, and of its columns."""
    head, rule, *rows = table.splitlines()
    first = [next(row for row in rows if row.startswith(f"| {name}")) for name in SHORT]
    cells = [row.split(" | ") for row in (head, *first)]
    texts = [" | ".join([c[0], c[1], c[3], c[4], c[5], f"{c[7]} |"]) for c in cells]
    return "\n".join([texts[0], rule[: len("|---" * 6)] + "|", *texts[1:]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--environments", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as throwaway:
        table, by_hand = tables(options.environments or Path(throwaway))
    if options.write:
        write(PAGE, "other quantizers", table)
        write(PAGE, "by hand", by_hand)
        write(README, "other quantizers", short(table))
    else:
        print(table, by_hand, short(table), sep="\n\n")
