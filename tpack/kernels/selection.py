"""Which kernels run: the extension's best variant here, one that was asked for, or numpy.

``TPACK_KERNEL=scalar|avx2|avx512|amx|neon|numpy`` forces one for the whole process and fails at
import where it cannot be had, so that a benchmark never measures something else in silence.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

from tpack.errors import UsageError

VARIANTS = ("amx", "avx512", "avx2", "neon", "scalar", "numpy")

#: Why there are no compiled kernels, and what to do; empty where there are.
missing = ""
_loaded: ModuleType | None = None
try:
    _loaded = import_module("tpack.kernels._native")
except ImportError as error:
    built = "could not be built when it was installed"
    missing = (
        "tpack has no compiled kernels: they "
        f"{built if isinstance(error, ModuleNotFoundError) else f'cannot be loaded ({error})'}. "
        "torch and numpy compute the same results, slowly. Install a C compiler and Python's "
        "headers, then run pip install again with --force-reinstall --no-deps --no-cache-dir."
    )

# The extension, or None where numpy serves. Fast paths read it at each call: ``forced`` changes it.
native: ModuleType | None = _loaded


def available() -> list[str]:
    """Name the variants that run on this machine, best first; the last is always ``numpy``."""
    return [*(_loaded.variants() if _loaded else []), "numpy"]


def variant() -> str:
    """Name the variant in use."""
    return str(native.variant()) if native else "numpy"


def select(name: str) -> None:
    """Use the named variant from now on.

    Raises:
        ValueError: There is no such variant.
        ImportError: It does not run here: another processor, or the extension was not built.
    """
    global native  # noqa: PLW0603 - one variant for the process, read without a call
    if name not in VARIANTS:
        raise ValueError(f"kernel variant: got {name!r}, expected one of {', '.join(VARIANTS)}.")
    if name == "numpy":
        native = None
    elif _loaded is None:
        raise ImportError(f"kernel variant: {name!r} does not run. {missing}")
    elif _loaded.select(name):
        native = _loaded
    else:
        raise ImportError(
            f"kernel variant: {name!r} does not run on this machine, "
            f"expected one of {', '.join(available())}."
        )


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Use the named variant inside a ``with`` block (in every thread of the process)."""
    before = variant()
    select(name)
    try:
        yield
    finally:
        select(before)


@cache
def warn_if_missing() -> None:
    """Warn once a process that there are no compiled kernels, unless numpy was asked for."""
    if missing and os.environ.get("TPACK_KERNEL") != "numpy":
        warnings.warn(missing, RuntimeWarning, stacklevel=2)


def default_threads() -> int:
    """Give the number of threads: torch's where torch is loaded, else one per usable core."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if wanted := os.environ.get("TPACK_KERNEL"):
    try:
        select(wanted)
    except (ImportError, ValueError) as error:
        raise UsageError(f"TPACK_KERNEL: {error}") from None
