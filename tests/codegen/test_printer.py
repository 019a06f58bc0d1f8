"""Lines as ``ruff format`` would lay them out."""

import ast
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from tpack.codegen.printer import WIDTH, Call, Items, Keyword, lay_out

names = st.from_regex(r"[a-z]{1,30}", fullmatch=True).map(lambda name: f"v_{name}")
texts = st.recursive(
    names,
    lambda below: st.one_of(
        st.builds(Call, names, st.lists(below, max_size=4).map(tuple)),
        st.builds(Items, st.lists(below, max_size=4).map(tuple)),
        st.builds(
            Call,
            names,
            st.lists(st.builds(Keyword, names, below), max_size=3, unique_by=lambda k: k.name).map(
                tuple
            ),
        ),
    ),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (Call("f", ("a", "b")), ["x = f(a, b)"]),
        (Call("f", ()), ["x = f()"]),
        (Items(("a",)), ["x = (a,)"]),
        (Items(("a", "b"), bare=True), ["x = a, b"]),
        (Call("f", (Keyword("k", "v"),)), ["x = f(k=v)"]),
        (
            Call("f", ("a" * 50, "b" * 32)),
            ["x = f(", f"    {'a' * 50}, {'b' * 32}", ")"],
        ),
        (
            Call("f", ("a" * 50, "b" * 33)),
            ["x = f(", f"    {'a' * 50},", f"    {'b' * 33},", ")"],
        ),
        (
            Items(("a" * 50, "b" * 31)),
            ["x = (", f"    {'a' * 50},", f"    {'b' * 31},", ")"],
        ),
    ],
)
def test_layouts(text, lines):
    assert lay_out(text, "", before="x = ") == lines


@given(texts, st.integers(0, 3))
def test_lines_join_to_the_same_expression(text, level):
    lines = lay_out(text, "    " * level, before="x = ")
    assert ast.dump(ast.parse("\n".join(lines).strip())) == ast.dump(ast.parse(f"x = {text}"))
    flat = f"{'    ' * level}x = {text}"
    assert (len(lines) == 1) == (len(flat) <= WIDTH)


def test_ruff_agrees(tmp_path):
    made = []

    @given(st.lists(texts, min_size=1, max_size=3))
    def collect(items):
        for item in items:
            made.append("\n".join(lay_out(item, "", before=f"x{len(made)} = ")))

    collect()
    (tmp_path / "lines.py").write_text("\n".join(made) + "\n")
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--isolated", "--no-cache", "--diff", "lines.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout[:2000]
