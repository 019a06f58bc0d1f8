"""One record from the command line to the bottom: what it has, all have."""

import inspect
import re
from dataclasses import fields, make_dataclass

import pytest
import torch

import tpack
import tpack.conversion
import tpack.html_report
import tpack.options
from tpack.errors import UsageError
from tpack.options import Options, Reading, check, option

OWN = {each.name: each for each in fields(Options)}
#: Keywords of ``convert`` about the source, and where the output goes.
ABOUT_SOURCE = {
    "source",
    "destination",
    "layerdef",
    "example_args",
    "example_kwargs",
    "dynamic_shapes",
}


def test_convert_has_a_keyword_for_each_field():
    taken = inspect.signature(tpack.convert).parameters
    assert set(taken) == set(OWN) | ABOUT_SOURCE
    for name, each in OWN.items():
        if name == "progress":  # nothing, unless a function is given
            assert (taken[name].default, taken[name].annotation) == (None, "Progress | None")
        else:
            assert (taken[name].default, taken[name].annotation) == (each.default, each.type)


def test_the_docstring_explains_each_keyword():
    text = tpack.convert.__doc__.partition("Raises:")[0]
    explained = re.findall(r"^ {8}(\w+): ", text, re.MULTILINE)
    assert explained == list(inspect.signature(tpack.convert).parameters)


def test_a_field_without_a_keyword_cannot_be_forgotten(tmp_path, monkeypatch):
    more = make_dataclass(
        "More", [("fake", bool, option(False, "Fake."))], bases=(Options,), frozen=True
    )
    monkeypatch.setattr(tpack.conversion, "Options", more)
    with pytest.raises(KeyError, match="fake"):
        tpack.convert({"w": torch.ones(4, 8)}, tmp_path / "a.safetensors")


def test_values_that_no_table_has_are_refused():
    for name, value, expected in (
        ("quantize", "best", "auto, absmean, twn or mse."),
        ("keep_dtype", "f64", "f32, f16 or bf16."),
        ("layout", "t3", "t2 or t5."),
        ("scale", "rows", "auto, tensor, row, column or group:N. Did you mean row?"),
        ("scale", "group:x", "auto, tensor, row, column or group:N. Did you mean group:N?"),
        ("scale_means", "add", "multiply or divide."),
        ("layout", ["t2"], "t2 or t5."),
    ):
        with pytest.raises(UsageError) as caught:
            Options(**{name: value})
        assert str(caught.value) == f"{name} {value!r} is unknown, expected {expected}"
    with pytest.raises(UsageError, match=r"include is 'up\*', expected a list: \['up\*'\]"):
        Options(include="up*")


def test_records_are_checked_by_their_fields():
    record = make_dataclass("Record", [("size", str, option("s", "Of it.", among={"l": None}))])
    check(record())
    check(record("l"))
    with pytest.raises(UsageError, match="size 'm' is unknown, expected s or l"):
        check(record("m"))


def test_what_says_how_a_source_is_read_is_said_to_every_command_that_opens_one():
    for run in (tpack.verify, tpack.html_report.html_report):
        taken = inspect.signature(run).parameters
        assert [each.name for each in fields(Reading)] == list(taken)[2:]
