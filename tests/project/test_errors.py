"""The tree of errors: codes, kinds, and what a message names."""

import pytest

from tpack import errors
from tpack.errors import FormatError, NotTernaryError, StorageError, TpackError, locate

CODES = {
    "UsageError": (2, "usage"),
    "InputError": (3, "input"),
    "FormatError": (3, "format"),
    "LayerDefError": (3, "layerdef"),
    "UnsupportedError": (3, "unsupported"),
    "NotTernaryError": (4, "not_ternary"),
    "ExistsError": (6, "exists"),
    "StorageError": (7, "storage"),
}


def test_every_class_has_the_code_of_the_contract():
    found = {
        name: (kind.code, kind.kind)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, TpackError) and kind is not TpackError
    }
    assert found == CODES


@pytest.mark.parametrize("name", sorted(CODES))
def test_every_class_is_in_the_drawing(name):
    assert f"{name} " in errors.__doc__
    assert f"code {CODES[name][0]}" in errors.__doc__


def test_value_errors_are_caught_as_such():
    for name in ("UsageError", "LayerDefError", "NotTernaryError"):
        assert issubclass(getattr(errors, name), ValueError)


def test_message_names_file_node_and_tensor():
    error = TpackError("is bad.", tensor="fc", node="Mlp.body[0]", file="m.pt")
    assert str(error) == "m.pt: Mlp.body[0]: tensor 'fc' is bad."
    assert str(TpackError("bad.")) == "bad."


def test_locate_adds_what_is_missing_and_no_more():
    with pytest.raises(FormatError) as caught, locate(file="outer"), locate(file="f", tensor="t"):
        raise FormatError("is bad.", rule="R5")
    assert (caught.value.file, caught.value.tensor, caught.value.rule) == ("f", "t", "R5")
    with pytest.raises(StorageError) as named, locate(file="in", tensor="b"):
        raise StorageError("is bad.", tensor="a", file="out")
    assert (named.value.file, named.value.tensor) == ("out", "a")
    with pytest.raises(KeyError), locate(file="f"):
        raise KeyError("x")


def test_not_ternary_carries_value_and_index():
    error = NotTernaryError("is bad.", index=(1, 2), value=0.5)
    assert (error.index, error.value, error.code) == ((1, 2), 0.5, 4)
