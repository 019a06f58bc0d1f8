"""What packing adds to a model card, unpacking takes away again."""

import pytest

from tpack.conversion.card import model_card
from tpack.modelcard import source_card
from tpack.report import TensorReport
from tpack.sources.source import Source

TEXT = "# A model\n\nIts text.\n"
#: Cards that come back byte for byte.
WHOLE = {
    "no front matter": TEXT,
    "front matter": f"---\nlicense: mit\nlanguage:\n- en\n- fr\n---\n\n{TEXT}",
    "tags last": f"---\nlicense: mit\ntags:\n- small\n---\n\n{TEXT}",
    "front matter alone": "---\nlicense: mit\n---\n",
    "a base of its own": f"---\nlicense: mit\nbase_model: org/base\n---\n\n{TEXT}",
    "nothing": "",
}


def packed(card, **more):
    return model_card(Source("a model", {}, card=card, **more), [], 0)


@pytest.mark.parametrize("name", WHOLE)
def test_a_card_comes_back(name):
    assert source_card(packed(WHOLE[name])) == WHOLE[name]


@pytest.mark.parametrize("name", sorted(set(WHOLE) - {"a base of its own"}))
def test_a_card_of_a_repository_comes_back(name):
    card = packed(WHOLE[name], repository="org/name")
    assert "base_model: org/name" in card
    assert source_card(card) == WHOLE[name]


def test_what_packing_replaces_is_not_known_any_more():
    card = f"---\nlibrary_name: transformers\nlicense: mit\ntags: [ternary, small]\n---\n\n{TEXT}"
    found = source_card(packed(card))
    assert found == f"---\nlicense: mit\ntags:\n- small\n---\n\n{TEXT}"


def told(*tensors):
    """What the card says of tensors, ``(action, reason)`` each: the sentences, and the rows."""
    reports = [
        TensorReport(f"{i}.weight", action, "tensor", "absmean", 0.6339, 2.25, (8, 8), reason)
        for i, (action, reason) in enumerate(tensors)
    ]
    lines = model_card(Source("a model", {}), reports, 0).split("\n")
    return "\n".join(lines[: lines.index("|---|---|---|---|---|---|")]), "\n".join(
        line for line in lines if line.startswith("| `")
    )


def test_masters_are_told_from_weights_that_were_rounded():
    words, rows = told(*[("quantized", "as its model rounds it")] * 3)
    assert "0 packed losslessly, 3 as the model rounds them, 0 quantized, 0 kept" in words
    assert "the packed model computes with the same weights" in words
    assert "changes the model" not in words
    assert "| as its model rounds it: absmean, tensor |  |" in rows
    words, rows = told(*[("quantized", "")] * 3)
    assert "0 packed losslessly, 3 quantized, 0 kept" in words
    assert (
        "The weights of 3 quantized tensors were rounded, with a relative error of at most 0.634"
        in words
    )
    assert "this changes the model" in words
    assert "model rounds" not in words
    assert "| quantized: absmean, tensor | 0.6339 |" in rows


def test_a_role_of_both_kinds_has_a_row_of_each():
    words, rows = told(("quantized", "as its model rounds it"), ("quantized", ""), ("packed", ""))
    assert "1 packed losslessly, 1 as the model rounds them, 1 quantized, 0 kept" in words
    assert "The weights of 1 quantized tensor were rounded" in words
    assert rows.count("| 1 |") == 3


def test_a_lossless_card_speaks_of_no_rounding():
    words, _ = told(("packed", ""))
    assert "1 packed losslessly, 0 quantized, 0 kept" in words
    assert "round" not in words


def test_names_stay_text():
    """A hub shows the card as Markdown: a name cannot write a part of it."""
    name = "a`\n\n# Scanned: safe\n<img src=x>|`` b"
    reports = [
        TensorReport(name, "packed", "tensor", "exact", 0.0, 2.0, (4, 4)),
        TensorReport("b", "kept", None, None, 0.0, 32.0, (4,), f"shares {name}"),
    ]
    card = model_card(Source("a model", {}), reports, 0)
    first, second = (line for line in card.splitlines() if "Scanned" in line)
    assert first.startswith("| ``` a`")
    assert "\\<img src=x\\>\\|" in second
    assert "\n# Scanned" not in card
