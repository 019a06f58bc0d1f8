"""What packing adds to a model card, unpacking takes away again."""

import pytest

from tpack.conversion.card import model_card
from tpack.modelcard import source_card
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
