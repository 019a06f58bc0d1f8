"""Which kernels run, on which threads, and that bad arguments never reach the extension."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from kernel_cases import work

from tpack import kernels
from tpack.kernels import selection

native = selection.native
needs_native = pytest.mark.skipif(native is None, reason="the extension was not built")
random = np.random.default_rng(3)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


# --- selection ----------------------------------------------------------------------------------


def test_available_ends_with_numpy() -> None:
    assert kernels.available()[-1] == "numpy"
    assert set(kernels.available()) <= set(selection.VARIANTS)


@pytest.mark.parametrize("name", kernels.available())
def test_the_environment_forces_a_variant(name: str) -> None:
    done = run_python("from tpack import kernels; print(kernels.variant())", TPACK_KERNEL=name)
    assert done.stdout.strip() == name, done.stderr


def test_an_unknown_variant_fails_loudly() -> None:
    done = run_python("import tpack.kernels", TPACK_KERNEL="sse9")
    assert done.returncode
    assert "UsageError: TPACK_KERNEL: kernel variant: got 'sse9'" in done.stderr
    with pytest.raises(ValueError, match="got 'sse9'"), kernels.forced("sse9"):
        pass


def test_a_variant_of_another_machine_fails_loudly() -> None:
    absent = [name for name in selection.VARIANTS if name not in kernels.available()]
    for name in absent:
        done = run_python("import tpack.kernels", TPACK_KERNEL=name)
        assert done.returncode
        assert "UsageError: TPACK_KERNEL" in done.stderr
        assert name in done.stderr


def test_the_command_line_says_that_the_variant_is_wrong() -> None:
    absent = [name for name in selection.VARIANTS if name not in kernels.available()]
    for name in ("sse9", absent[0]):
        done = subprocess.run(
            [sys.executable, "-m", "tpack", "bench"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"TPACK_KERNEL": name},
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("tpack: TPACK_KERNEL: kernel variant: ")


def test_forced_restores_the_variant_before() -> None:
    before = kernels.variant()
    with kernels.forced("numpy"):
        assert kernels.variant() == "numpy"
        assert selection.native is None
        with kernels.forced(kernels.available()[0]):
            assert kernels.variant() == kernels.available()[0]
        assert kernels.variant() == "numpy"
    assert kernels.variant() == before


#: What a Python without the extension runs first.
WITHOUT = "import sys; sys.modules['tpack.kernels._native'] = None\n"


def test_without_the_extension_numpy_serves() -> None:
    code = (
        f"{WITHOUT}import numpy as np; from tpack import kernels\n"
        "print(kernels.available(), kernels.pack(np.array([[1, 0, -1]], np.int8)).tolist())\n"
        "kernels.select('scalar')"
    )
    done = run_python(code, TPACK_KERNEL="")
    assert done.stdout.strip() == "['numpy'] [[70]]"
    assert "ImportError: kernel variant: 'scalar' does not run. tpack has no comp" in done.stderr
    assert "they could not be built when it was installed." in done.stderr


def test_an_extension_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "_native.abi3.so").write_bytes(b"no library")
    code = (
        "import importlib, sys; from tpack import kernels\n"
        f"kernels.__path__.insert(0, {str(tmp_path)!r})\n"
        "sys.modules.pop('tpack.kernels._native', None)\n"
        "print(importlib.reload(kernels.selection).missing)"
    )
    done = run_python(code)
    assert "they cannot be loaded (" in done.stdout, done.stderr


def test_a_layer_without_the_extension_says_so_once() -> None:
    pytest.importorskip("torch")
    code = (
        f"{WITHOUT}import torch, tpack.nn; layer = tpack.nn.TernaryLinear(8, 4)\n"
        "for _ in range(3): layer(torch.ones(1, 8))\n"
        "torch.compile(layer, backend='eager', fullgraph=True)(torch.ones(1, 8))"
    )
    done = run_python(code, TPACK_KERNEL="")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning: tpack has no compiled kernels: ") == 1, done.stderr
    assert not run_python(code, TPACK_KERNEL="numpy").stderr


# --- threads ------------------------------------------------------------------------------------


def test_results_do_not_depend_on_threads() -> None:
    for name in kernels.available():
        with kernels.forced(name):
            first = work(1)
            assert all(np.array_equal(work(threads), first) for threads in (2, 3, None))


def test_two_python_threads_at_once() -> None:
    expected, results = work(), []

    def repeat() -> None:
        results.extend(np.array_equal(work(2), expected) for _ in range(30))

    workers = [threading.Thread(target=repeat) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert results == [True] * 60


#: Where a child finds what the tests share.
PATHS = [str(Path(__file__).parents[1])]

FORK = """
import os, sys, numpy as np
sys.path[:0] = {tests!r}
{torch}
from kernel_cases import work
from tpack.kernels.selection import native
expected = work(2)
print(native.runtime(), flush=True)
child = os.fork()
if child == 0:
    same = all(np.array_equal(work(n), expected) for n in (1, 2, 3))
    os._exit(0 if same and native.runtime() == "pthread" else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("torch", [False, True])
def test_after_a_fork(torch: bool) -> None:
    if torch:
        pytest.importorskip("torch")
    line = (
        "import torch; torch.set_num_threads(2); torch.ones(1000, 1000) @ torch.ones(1000, 1000)"
        if torch
        else ""
    )
    done = run_python(FORK.format(tests=PATHS, torch=line))
    assert done.stdout.split() == ["openmp" if torch else "pthread", "0"], done.stderr


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "order",
    [
        "import torch; from kernel_cases import work",
        "from kernel_cases import work; work(2); import torch",
    ],
)
def test_never_two_openmp_runtimes(order: str) -> None:
    pytest.importorskip("torch")
    code = (
        f"import sys; sys.path[:0] = {PATHS!r}\n{order}\n"
        "from tpack.kernels import selection\n"
        "torch.set_num_threads(3); work()\n"
        "maps = {line.split()[-1].rsplit('/', 1)[-1] for line in open('/proc/self/maps')}\n"
        "openmp = [name for name in maps if name.startswith(('libgomp', 'libomp', 'libiomp'))]\n"
        "print(len(openmp), selection.native.runtime(), selection.default_threads())"
    )
    assert run_python(code).stdout.split() == ["1", "openmp", "3"]


def test_torch_is_not_imported() -> None:
    assert (
        run_python("import sys, tpack.kernels; print('torch' in sys.modules)").stdout.strip()
        == "False"
    )


# --- arguments ----------------------------------------------------------------------------------

PACKED, ONE = np.full((3, 2), 0x55, np.uint8), np.ones(1, np.float32)
X = np.ones((2, 7), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.pack(np.ones(3, np.int8)), "two dimensions"),
        (lambda: kernels.pack(np.ones((3, 3), np.int64)), "dtype int64"),
        (lambda: kernels.pack(np.ones((3, 3), np.int8), threads=0), "threads: got 0"),
        (lambda: kernels.unpack(PACKED, 9), r"shape \(3, 2\), expected \(rows, 3\)"),
        (lambda: kernels.unpack(PACKED, -1), "columns: got -1"),
        (lambda: kernels.unpack(PACKED.astype(np.int8), 8), "dtype int8"),
        (lambda: kernels.unpack(PACKED, 8, np.float64), "dtype float64"),
        (
            lambda: kernels.dequantize(PACKED, 8, np.ones(2, np.float32)),
            r"scale: shape \(2,\), expected \(1,\)",
        ),
        (lambda: kernels.dequantize(PACKED, 8, ONE, group=6), "group: got 6"),
        (lambda: kernels.dequantize(PACKED, 8, ONE, group=-4), "group: got -4"),
        (lambda: kernels.embedding(np.zeros(2, np.int32), PACKED, 8, ONE), "dtype int32"),
        (lambda: kernels.abs_sums(np.ones((2, 2))), "dtype float64"),
        (lambda: kernels.quantize(X, -ONE), "thresholds"),
        (lambda: kernels.quantize(X, np.full(1, np.nan, np.float32)), "thresholds"),
        (lambda: kernels.linear(X[0], PACKED, ONE), r"x: shape \(7,\)"),
        (lambda: kernels.linear(X[:, :3], PACKED, ONE), r"expected \(rows, 1\) for 3 columns"),
        (
            lambda: kernels.linear(X, PACKED, ONE, np.ones(2, np.float32)),
            r"bias: shape \(2,\), expected \(3,\)",
        ),
        (
            lambda: kernels.bit_linear(X, PACKED, np.ones((3, 1), np.float64), group=1),
            "dtype float64",
        ),
        (lambda: kernels.linear_columns(X, PACKED, 8, ONE), "7 features, expected 3"),
        (lambda: kernels.infer_group((3, 5), 4, 8), "does not fit"),
    ],
)
def test_bad_arguments_are_value_errors(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_infer_group() -> None:
    assert [
        kernels.infer_group(s, 8, 4096) for s in ((1,), (8, 1), (8, 16), (8, 64), (8, 1024))
    ] == [0, 1, 256, 64, 4]
    for columns in (5, 100, 1000, 4097):
        for group in (32, 64, 128, 256):
            groups = -(-columns // group)
            if groups > 1:
                found = kernels.infer_group((8, groups), 8, columns)
                assert -(-columns // found) == groups


def test_arrays_that_are_not_contiguous() -> None:
    values = random.integers(-1, 2, (8, 12)).astype(np.int8)
    assert np.array_equal(kernels.pack(values[::2, ::3]), kernels.pack(values[::2, ::3].copy()))
    wide = random.standard_normal((4, 24)).astype(np.float32)
    packed = kernels.pack(values)
    assert np.array_equal(
        kernels.linear(wide[:, ::2], packed, ONE), kernels.linear(wide[:, ::2].copy(), packed, ONE)
    )


@needs_native
def test_the_extension_counts_its_arguments() -> None:
    assert native is not None
    with pytest.raises(TypeError, match="expected 6 arguments, got 1"):
        native.pack(1)
    with pytest.raises(OverflowError):
        native.pack(-1, 0, 0, 0, 0, 1)
    with pytest.raises(TypeError):
        native.pack("address", 0, 0, 0, 0, 1)
