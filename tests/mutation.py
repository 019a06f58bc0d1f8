"""Mutation testing: do the tests notice small faults in the code that everything rests on?

    python tests/mutation.py [PATH | PATH:LINE …] [--tests PATH …] [--least PERCENT] [--write PAGE]

Nothing on the disk is changed. One process runs the tests once, and notes which of them reach
which lines. For each fault in a function it then forks a child, puts the changed code into the
function that is loaded, and runs the tests that reach its line, the fastest and those that found
faults before first, until one fails. A fault in what runs on import gets a child of a process that
has loaded torch but not tpack. A fault that no test notices has survived. ``make mutation`` tries
all, and writes the table of docs/testing.md anew.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType

import coverage
import hypothesis
import pytest
import safetensors.torch  # noqa: F401  # and with it torch: children need not load it again
from _pytest.doctest import DoctestItem
from mutants import Mutant, mutants_of

ROOT = Path(__file__).parent.parent
#: The tests of each module, besides its own doctests: patterns for NAME in tests/*/test_NAME.py,
#: so that a file of tests that is split as test_NAME_PART.py stays in the table.
TESTS = {
    "tpack/codec/__init__.py": "codec pack",
    "tpack/codec/shapes.py": "codec",
    "tpack/codec/t2.py": "codec",
    "tpack/codec/t5.py": "codec",
    "tpack/container/atomic.py": "atomic new_file",
    "tpack/container/rereading.py": "atomic",
    "tpack/container/document.py": "document*",
    "tpack/container/header.py": "header",
    "tpack/container/index.py": "index",
    "tpack/container/opening.py": "header container",
    "tpack/container/reader.py": "reader",
    "tpack/container/strictjson.py": "strictjson",
    "tpack/container/writer.py": "writer",
    "tpack/layerdef/constants.py": "tensors params validation",
    "tpack/layerdef/names.py": "layerdef params limits",
    "tpack/layerdef/params.py": "params limits validation",
    "tpack/layerdef/serialization.py": "serialization",
    "tpack/layerdef/tensors.py": "tensors",
    "tpack/layerdef/validation.py": "limits validation",
}
#: Around the table in the page.
BEGIN, END = "<!-- generated: mutation -->\n", "<!-- end -->"
#: Seconds of tests for one fault, the fastest first.
BUDGET = 3.0
#: Exit statuses of a child; the last one where the code cannot be put into the function.
SURVIVED, KILLED, BROKEN = 0, 1, 2
#: Children print what tests do, too; this goes where it should.
REPORT = os.fdopen(os.dup(1), "w", buffering=1)


class Session:
    """The plugin of the process that runs all tests once, then forks for each fault."""

    def __init__(self, mutants: list[tuple[int, Mutant]]) -> None:
        self.mutants = mutants
        self.seconds: dict[str, float] = {}
        self.results: dict[int, str] = {}
        self.failed: set[str] = set()
        self.found: dict[str, int] = defaultdict(int)
        paths = sorted({str(mutant.path) for _, mutant in mutants}) or [__file__]
        self.coverage = coverage.Coverage(data_file=None, include=paths, config_file=False)

    def pytest_internalerror(self, excrepr: object) -> None:
        self.problem = str(excrepr)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.run_all(session.items)
        self.items = {item.nodeid: item for item in session.items}
        self.drop_what_fails_again()
        for number, mutant in self.mutants:
            known = self.lines.get(str(mutant.path), {})
            reached = {name for line in mutant.lines for name in known.get(line, ())} - {""}
            names = reached or set(known.get(mutant.statement, ()))
            self.results[number], _ = self.try_fault(mutant, names & self.items.keys())
            tell(mutant, self.results[number])
        return True

    def run_all(self, items: list[pytest.Item]) -> None:
        """Run all tests, note what they reach and how long they take, drop what fails."""
        self.coverage.start()
        for item, following in zip(items, [*items[1:], None], strict=True):
            self.coverage.switch_context(item.nodeid)
            start = sum(os.times()[:4])
            names = dict(item.dtest.globs) if isinstance(item, DoctestItem) else {}
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if isinstance(item, DoctestItem):
                item.dtest.globs.update(names)  # a doctest clears them, and will run again
            self.seconds[item.nodeid] = sum(os.times()[:4]) - start
        self.coverage.stop()
        for name in sorted(self.failed):
            print(f"left out, as it fails without a fault: {name}", file=REPORT)
        items[:] = [item for item in items if item.nodeid not in self.failed]
        data = self.coverage.get_data()
        self.lines = {path: data.contexts_by_lineno(path) for path in data.measured_files()}

    def drop_what_fails_again(self) -> None:
        """Leave out what fails in a child without a fault, and so would say nothing of one."""
        while (answer := self.try_fault(None, set(self.items)))[0] != "survived":
            result, name = answer
            assert name is not None, f"without a fault: {result}"
            print(f"left out, as it fails when it runs again: {name}", file=REPORT)
            del self.items[name]
            self.failed.add(name)

    def try_fault(self, mutant: Mutant | None, tests: set[str]) -> tuple[str, str | None]:
        """What became of a fault in a child, and the test that noticed it."""
        names = in_budget(tests, self.seconds, self.found)
        child = partial(self.run_against, mutant, [self.items[name] for name in names])
        result, at = judged(child, sum(map(self.seconds.get, names)))
        if at is None:
            return result, None
        self.found[names[at]] += mutant is not None
        return result, names[at]

    def run_against(self, mutant: Mutant | None, items: list[pytest.Item], say: Callable) -> int:
        try:
            if mutant is not None:
                function_of(mutant).__code__ = code_of(mutant.apply(), mutant.function)
        except Exception:  # noqa: BLE001 -- such as other free variables: then on import
            return BROKEN
        self.failed.clear()
        for at, item in enumerate(items):
            following = items[at + 1] if at + 1 < len(items) else None
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                say(at)
                return KILLED
        return SURVIVED


class InOrder:
    """The plugin of a process for one fault: the fastest tests first, the slowest not at all."""

    def __init__(self, mutant: Mutant | None, seconds: dict[str, float], failed: set[str]) -> None:
        self.mutant = mutant
        self.seconds = seconds
        self.failed = failed

    def pytest_configure(self) -> None:
        if self.mutant is not None:  # before pytest's own finder, which loads what it is given
            sys.meta_path.insert(0, Changed(self.mutant, self.mutant.apply()))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = {i.nodeid: i for i in items if i.nodeid in self.seconds.keys() - self.failed}
        items[:] = [known[name] for name in in_budget(known, self.seconds, {})]


class Changed(MetaPathFinder):
    """Loads one module from the code of a fault."""

    def __init__(self, mutant: Mutant, code: CodeType) -> None:
        self.path = mutant.path
        parts = mutant.path.relative_to(ROOT).with_suffix("").parts
        self.name = ".".join(parts).removesuffix(".__init__")
        self.code = code

    def find_spec(self, name: str, path: object, target: object = None) -> object:
        if name != self.name:
            return None
        loader = SourceFileLoader(name, str(self.path))
        loader.get_code = lambda _: self.code
        return spec_from_file_location(name, self.path, loader=loader)


def in_budget(names: Iterable[str], seconds: dict[str, float], found: dict[str, int]) -> list[str]:
    """Names of tests in the order they run in, while they take no more than ``BUDGET``."""
    chosen, left = [], BUDGET
    for name in sorted(names, key=lambda name: (-found.get(name, 0), seconds[name], name)):
        left -= seconds[name]
        if left >= 0:
            chosen.append(name)
    return chosen


def function_of(mutant: Mutant) -> FunctionType:
    """The loaded function that a fault belongs to."""
    found: object = sys.modules[Changed(mutant, compile("", "", "exec")).name]
    for name in mutant.function.split("."):
        found = vars(found)[name]
    for attribute in ("__func__", "fget", "__wrapped__"):
        found = getattr(found, attribute, found)
    assert isinstance(found, FunctionType), mutant
    return found


def code_of(code: CodeType, name: str) -> CodeType:
    """The code of a function within that of its module."""
    for part in name.split("."):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == part)
    return code


def judged(child: Callable[[Callable], int], seconds: float) -> tuple[str, int | None]:
    """Fork a child, and tell what became of its fault, and which of its tests has found it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            limit = int(5 + 3 * seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            signal.alarm(10 * limit)
            status = child(lambda at: os.write(write, str(at).encode()))
        except BaseException:  # noqa: BLE001 -- pytest tells of what tests raise: it is ours
            status = BROKEN
        finally:
            os._exit(status)
    os.close(write)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(read) as pipe:
        at = pipe.read()
    code = os.waitstatus_to_exitcode(status)
    word = {SURVIVED: "survived", KILLED: "killed"}.get(code, "timeout" if code < 0 else "broken")
    return word, int(at) if at else None


def tell(mutant: Mutant, result: str) -> None:
    if result == "survived":
        place = f"{mutant.path.relative_to(ROOT)}:{mutant.lines.start}"
        print(f"{place}: {result}: {mutant.text}", file=REPORT)


def silence() -> None:
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def run_tests(tests: list[str], plugin: object, *, first_failure: bool = False) -> int:
    hypothesis.settings.register_profile(
        *("mutation", hypothesis.settings.get_profile("default")),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    options = ["-s", "-m", "not slow", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options.append("--hypothesis-profile=mutation")  # instead of the one of tests/conftest.py
    return pytest.main([*options, *(["-x"] if first_failure else []), *tests], plugins=[plugin])


def run_on_import(tests: list[str], plugin: InOrder, _: Callable) -> int:
    silence()
    return KILLED if run_tests(tests, plugin, first_failure=True) else SURVIVED


def results_of(mutants: list[Mutant], tests: list[str]) -> list[str]:
    """What became of each fault."""
    late = [(i, mutant) for i, mutant in enumerate(mutants) if mutant.function]
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "notes.json")
        pid = os.fork()
        if pid == 0:
            try:
                silence()
                session = Session(late)
                status = run_tests(tests, session)
                assert status != pytest.ExitCode.INTERNAL_ERROR, session.problem
                said = session.results, session.seconds, sorted(session.failed)
                notes.write_text(json.dumps(said))
            except BaseException:
                traceback.print_exc(file=REPORT)
                raise
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        results, seconds, failed = json.loads(notes.read_text())
    results = {int(number): result for number, result in results.items()}
    on_import = [i for i in range(len(mutants)) if results.get(i, "broken") == "broken"]
    for number in [None, *on_import] if on_import else []:
        mutant = None if number is None else mutants[number]
        child = partial(run_on_import, tests, InOrder(mutant, seconds, set(failed)))
        results[number], _ = judged(child, 5 + BUDGET)
        assert number is not None or results[number] == "survived", "tests fail without a fault"
        if mutant is not None:
            tell(mutant, results[number])
    return [results[number] for number in range(len(mutants))]


def wanted(path: str) -> list[Mutant]:
    """The faults of a file, or of one line of it."""
    name, _, line = path.partition(":")
    mutants = mutants_of(ROOT / name, (ROOT / name).read_text())
    return [mutant for mutant in mutants if not line or int(line) == mutant.lines.start]


def files_of(pattern: str) -> list[str]:
    """The files of tests that a word of ``TESTS`` stands for."""
    return [str(path) for path in sorted(ROOT.glob(f"tests/*/test_{pattern}.py"))]


def table(counts: dict[str, tuple[int, int]]) -> str:
    """The table of the page, from the faults of each module: how many were noticed, of how many."""
    lines = ["| module | faults | survived | noticed |", "|---|---|---|---|"]
    noticed, of = (sum(column) for column in zip(*counts.values(), strict=True))
    rows = {f"`{path.removeprefix('tpack/')}`": counts[path] for path in sorted(counts)}
    for name, (found, tried) in {**rows, "all": (noticed, of)}.items():
        lines.append(f"| {name} | {tried} | {tried - found} | {found / tried:.1%} |")
    return "\n".join(lines).replace("%", " %") + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=list(TESTS))
    parser.add_argument("--tests", nargs="+", default=None)
    parser.add_argument("--least", type=float, default=0.0, help="percent that must be noticed")
    parser.add_argument("--write", type=Path, help="the page whose table is written anew")
    options = parser.parse_args()
    if options.write and options.paths != list(TESTS):
        parser.error("--write needs the counts of all modules: leave out the paths")
    os.chdir(ROOT)
    by_tests: dict[tuple[str, ...], list[Mutant]] = defaultdict(list)
    for path in options.paths:
        module = path.partition(":")[0]
        tests = options.tests or [
            module,
            *(path for pattern in TESTS[module].split() for path in files_of(pattern)),
        ]
        by_tests[tuple(tests)] += wanted(path)
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for tests, mutants in by_tests.items():
        for mutant, result in zip(mutants, results_of(mutants, list(tests)), strict=True):
            path = str(mutant.path.relative_to(ROOT))
            noticed, of = counts[path]
            counts[path] = noticed + (result in ("killed", "timeout")), of + 1
    for path, (noticed, of) in sorted(counts.items()):
        print(f"{noticed / of:7.1%}  {noticed:4} of {of:4}  {path}", file=REPORT)
    noticed, of = (sum(column) for column in zip(*counts.values(), strict=True))
    print(f"{noticed / of:7.1%}  {noticed:4} of {of:4}", file=REPORT)
    if options.write:
        before, _, rest = options.write.read_text().partition(BEGIN)
        options.write.write_text(before + BEGIN + table(counts) + END + rest.partition(END)[2])
    return int(100 * noticed < options.least * of)


if __name__ == "__main__":
    # what a child would otherwise wait for: threads that a fork does not copy
    sys.modules["torch"].set_num_threads(1)
    sys.exit(main())
