"""The families of transformers that tpack is tried with, and the table of ``docs/models.md``.

``tests/hf/test_families.py`` tries what is said here, with a small random model of each.
``python tests/families.py`` writes the table, and prints the short one of the README.
"""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- tests/families.py begin -->\n", "<!-- end -->\n"
_CAPTURED = """
    apertus arcee beam bert bert-generation biogpt bitnet bloom camembert cohere cohere2 ctrl
    cwm data2vec-text diffllama doge electra ernie ernie4_5 exaone4 falcon_h1 flint fuyu gemma
    gemma2 gemma3_text gemma4_unified_text glm glm4 gpt-sw3 gpt2 gpt_bigcode gpt_neox
    gpt_neox_japanese granite granite_swa hyperclovax internlm3 iquestcoder jais2 lfm2 llama
    megatron-bert ministral3 mistral modernbert-decoder moshi nanochat nemotron olmo olmo2 olmo3
    openai-gpt opt persimmon phi phi3 qwen2 qwen3 rembert roberta roberta-prelayernorm roc_bert
    roformer seed_oss smollm3 stablelm starcoder2 trocr vaultgemma xlm-roberta xlm-roberta-xl
"""
#: Families by the name of their config: converted, they run packed in transformers. The value is
#: the reason why the whole source cannot be captured, or empty.
FAMILIES: dict[str, str] = dict.fromkeys(_CAPTURED.split(), "") | {
    "big_bird": "an op without a row",
    "cpmant": "sizes are fixed",
    "falcon_mamba": "sizes are fixed",
    "mamba": "sizes are fixed",
    "mpt": "a size that LayerDef cannot compute",
    "rwkv": "its loop is unrolled",
    "xglm": "a long buffer that no state dict holds",
    "xlm": "an empty tensor",
}
#: What the README calls them, in rows of families for which the same is true.
ROWS = {
    "Llama": "llama",
    "BitNet b1.58": "bitnet",
    "Qwen2, Qwen3, Mistral, Gemma 1 to 3": "qwen2 qwen3 mistral gemma gemma2 gemma3_text",
    "Phi, Phi-3, OLMo 1 to 3, Granite, SmolLM3": "phi phi3 olmo olmo2 olmo3 granite smollm3",
    "GPT-2, GPT-NeoX, OPT, BLOOM, Falcon-H1, BERT": "gpt2 gpt_neox opt bloom falcon_h1 bert",
    "Mamba, RWKV, MPT": "mamba rwkv mpt",
}
#: Those that llama.cpp runs from an exported GGUF file (tests/exporting/test_llama_cpp.py).
IN_LLAMA_CPP = ("llama", "bitnet")
#: Those whose test is part of the fast suite.
FAST = ("llama", "bitnet", "qwen3", "gemma3_text", "gpt2")


def table() -> str:
    """Every family, and what is tested with it."""
    head = (
        "| family | runs packed in transformers | whole source | llama.cpp |\n|---|---|---|---|\n"
    )
    return head + "".join(
        f"| {name} | ✓ | {reason or '✓'} | {'✓' if name in IN_LLAMA_CPP else ''} |\n"
        for name, reason in sorted(FAMILIES.items())
    )


def short_table() -> str:
    """The rows of the README: a mark where it is true of every family of the row."""
    lines = ["| family | converted, runs packed in transformers | whole source | llama.cpp |"]
    for title, names in ROWS.items():
        families = names.split()
        assert all(name in FAMILIES for name in families)
        whole = not any(FAMILIES[name] for name in families)
        ran = all(name in IN_LLAMA_CPP for name in families)
        lines.append(f"| {title} | ✓ | {'✓' if whole else ''} | {'✓' if ran else ''} |")
    return "\n".join([lines[0], "|---|---|---|---|", *lines[1:]])


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
    print(short_table())
