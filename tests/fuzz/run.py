"""Fuzz tpack, guided by coverage: ``make fuzz``, or ``python tests/fuzz/run.py``.

Each target of ``targets.py`` gets its share of the time, in a process of its own, under atheris
(libFuzzer on instrumented bytecode; the extra ``fuzz`` installs it). What reached new code is
kept in ``build/fuzz/corpus`` and tried again next time. A finding ends its target, is kept in
``build/fuzz/findings``, and makes the run fail; ``run.py TARGET FILE`` does it again without
atheris. The C code is fuzzed by ``tests/native/fuzz_kernels.c``, under sanitizers.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fuzz"
#: First argument of the processes that run one target under atheris.
CHILD = "--child"

sys.path[:0] = [str(HERE), str(HERE.parent)]


def main() -> int:
    """Run all targets, or the one that is named; 1 if one of them found something."""
    if sys.argv[1:2] == [CHILD]:
        return _fuzz(*sys.argv[2:])
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60, help="for all targets together")
    options.add_argument("--seed", type=int, default=1, help="of the random numbers")
    options.add_argument("--native", type=Path, help="the program of tests/native/fuzz_kernels.c")
    options.add_argument("target", nargs="?", help="only this one")
    options.add_argument("file", nargs="?", type=Path, help="only on this input")
    given = options.parse_args()
    from targets import TARGETS

    if given.file:
        TARGETS[given.target].function(given.file.read_bytes())
        return 0
    names = [given.target] if given.target else list(TARGETS)
    share = given.seconds / (len(names) + bool(given.native))
    results = [_start(name, share, given.seed) for name in names]
    if given.native:
        results.append(_native(given.native, share, given.seed))
    total = sum(count for count, _ in results)
    print(f"{'all':12} {total:>10,} executions", flush=True)
    return any(failed for _, failed in results)


def _start(name: str, seconds: float, seed: int) -> tuple[int, bool]:
    """Run one target in a process of its own; how often it ran, and whether it found anything."""
    from targets import TARGETS

    corpus, findings = BUILD / "corpus" / name, BUILD / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    fuzzed = TARGETS[name]
    for number, seed_bytes in enumerate(fuzzed.seeds()):
        (corpus / f"seed-{number:03}").write_bytes(seed_bytes)
    command = [
        *(sys.executable, str(HERE / "run.py"), CHILD, name, str(corpus)),
        *(f"-max_total_time={max(int(seconds), 1)}", f"-seed={seed}", "-len_control=0"),
        *(f"-max_len={fuzzed.longest}", f"-artifact_prefix={findings}/{name}-"),
        *("-timeout=60", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=1"),
    ]
    if fuzzed.words:
        words = BUILD / f"{name}.words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in fuzzed.words))
        command.append(f"-dict={words}")
    started = time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:  # libFuzzer leaves without a word
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=os.environ | {"TMPDIR": folder},
        )
    took = time.monotonic() - started
    counts = re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)
    counts += re.findall(r"number_of_executed_units: (\d+)", done.stderr)
    reached = re.findall(r"cov: (\d+)", done.stderr)
    count = max(map(int, counts), default=0)
    print(
        f"{name:12} {count:>10,} executions in {took:5.1f} s, {(reached or ['0'])[-1]} places",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-4000:] + done.stderr[-8000:], file=sys.stderr)
    return count, done.returncode != 0


def _native(program: Path, seconds: float, seed: int) -> tuple[int, bool]:
    """Run the driver of the C code; each of its cases runs every variant."""
    first = 1 + (seed - 1) * 10_000_000
    command = [str(program), f"{seconds:.1f}", str(first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, end="", flush=True)
    counts = re.findall(r"(\d+) executions", done.stdout)
    return int((counts or ["0"])[0]), done.returncode != 0


def _escaped(word: str) -> str:
    return "".join(c if c.isalnum() or c in "_." else f"\\x{ord(c):02x}" for c in word)


def _fuzz(name: str, *arguments: str) -> int:
    """Become libFuzzer, on one target."""
    try:
        import atheris
    except ImportError:
        print(
            "make fuzz needs atheris. Install the extra: pip install -e '.[fuzz]'.", file=sys.stderr
        )
        return 2
    with atheris.instrument_imports(include=["tpack"]):
        from targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name].function)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
