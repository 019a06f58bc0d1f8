"""The faults that mutation.py tries, and that it tells those that are noticed from the others."""

import re
import subprocess
import sys
from pathlib import Path

import mutation
import pytest
from mutants import mutants_of

ROOT = Path(__file__).parents[2]


def texts(source):
    return [mutant.text for mutant in mutants_of(Path("x.py"), source)]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a < b", ["a < b → a <= b"]),
        ("a in b", ["a in b → a not in b"]),
        ("a is None", ["a is None → a is not None"]),
        ("a < b == c", ["a < b == c → a <= b == c", "a < b == c → a < b != c"]),
        ("a and b", ["a and b → a or b", "a and b → b", "a and b → a"]),
        ("not a", ["not a → a"]),
        ("-a", ["-a → a"]),
        ("a + b", ["a + b → a - b"]),
        ("a << b", ["a << b → a >> b"]),
        ("7", []),
        ("x = 7", ["7 → 8", "7 → 6"]),
        ("x = 'a'", ["'a' → 'ax'"]),
        ("x = True", ["True → False"]),
        ("x = f'{a}'", ["f'{a}' → 'mutated'"]),
        ("x = min(a)", ["min → max"]),
        ("f(a)", ["f(a) → pass"]),
        ("f(a=b)", ["f(a=b) → pass", "a=b → nothing"]),
        ("x += y", ["x += y → pass", "x += y → x -= y"]),
        ("if a:\n    b", ["if a: b → if False: b", "if a: b → if True: b"]),
        ("while a:\n    b", ["while a: b → while False: b"]),
        ("while True:\n    break", ["True → False", "break → continue"]),
        ("[a for a in b if c]", ["for a in b if c → for a in b"]),
        ("def f():\n    return a", ["return a → return None"]),
        ("raise E('text', node=n)", ["raise E('text', node=n) → pass", "node=n → nothing"]),
        ("if a:\n    raise E", [f"if a: raise E → if {b}: raise E" for b in (False, True)]),
        ("'docstring'", []),
        ("assert a < b", []),
        ("__all__ = ['a']", []),
        ("def f(a: x[1]) -> y[2]: pass", []),
    ],
)  # fmt: skip
def test_faults_of_source(source, wanted):
    assert texts(source) == wanted


def test_a_case_is_never_taken_or_always():
    assert texts("match a:\n    case b if c:\n        d") == [
        "case b if c: d → case b if False: d",
        "case b if c: d → case b: d",
    ]


@pytest.mark.parametrize("number", range(2))
def test_a_fault_compiles_to_what_it_says(number):
    mutant = mutants_of(Path("x.py"), "def f(n):\n    return n + 1\n")[number]
    namespace = {}
    exec(mutant.apply(), namespace)
    assert namespace["f"](1) == (None, 0)[number]
    assert (mutant.function, mutant.lines, mutant.statement) == ("f", range(2, 3), 2)


def test_what_runs_on_import_belongs_to_no_function():
    source = (
        "@f(1)\ndef g(a=2):\n    def h(b=3): return 4\nclass C:\n    x = 5\n    def i(self): f(6)\n"
    )
    functions = {
        mutant.text.partition(" ")[0]: mutant.function
        for mutant in mutants_of(Path("x.py"), source)
    }
    assert {n: functions[n] for n in "123456"} == {
        **dict.fromkeys("125", None), "3": "g", "4": "g", "6": "C.i",
    }  # fmt: skip


def test_the_modules_and_their_tests_exist():
    for module, patterns in mutation.TESTS.items():
        assert (ROOT / module).is_file(), module
        for pattern in patterns.split():
            assert mutation.files_of(pattern), f"{module}: no tests/*/test_{pattern}.py"


def test_the_page_has_a_row_for_each_module():
    page = (ROOT / "docs" / "testing.md").read_text()
    block = page.split(mutation.BEGIN)[1].split(mutation.END)[0]
    cells = [re.findall(r"[^| `]+", line) for line in block.splitlines()[2:-1]]
    counts = {f"tpack/{name}": (int(of) - int(left), int(of)) for name, of, left, *_ in cells}
    assert counts.keys() == mutation.TESTS.keys()
    assert mutation.table(counts) == block


@pytest.mark.slow
def test_faults_are_noticed_where_tests_look_and_not_elsewhere():
    """By the doctests of the codec: they tell nothing of default_split in line 21."""
    shapes = ROOT / "tpack" / "codec" / "shapes.py"
    lines = {text.strip(): i for i, text in enumerate(shapes.read_text().splitlines(), 1)}
    looked_at = lines["return math.prod(shape[:split]), math.prod(shape[split:])"]
    elsewhere = lines["return min(1, max(rank - 1, 0))"]
    on_import = lines["GROUP_SIZES = (256, 128, 64, 32)"]
    places = [f"tpack/codec/shapes.py:{line}" for line in (looked_at, elsewhere, on_import)]
    for other, least, status in ((places[2], "10", 0), (places[1], "90", 1)):
        options = ["--tests", "tpack/codec", "--least", least]
        done = subprocess.run(
            [sys.executable, "tests/mutation.py", places[0], other, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        printed = done.stdout.splitlines()
        assert done.returncode == status, done.stdout + done.stderr
        assert {line.split(": ")[0] for line in printed if "survived" in line} == {other}
        assert "% " in printed[-1]
