"""Builds tpack.kernels._native where there is a C compiler; without one tpack installs too."""

import os
import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

FOLDER = Path("tpack/kernels/csrc")
COMMON = [
    *("parallel", "floats", "convert", "quantize", "matmul", "columns", "transpose", "bandwidth"),
    *("dispatch", "module", "scalar"),
]
VARIANTS = {
    "x86_64": [
        *("avx2", "avx2_weights", "avx2_dots", "avx2_floats", "avx2_columns"),
        *("avx512", "avx512_weights", "avx512_dots", "avx512_floats", "avx512_matvec"),
        *("avx512_columns", "amx"),
    ],
    "aarch64": ["neon"],
}
MACHINES = {"AMD64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}

# Each function names its own instruction set; -march here would let the compiler use it everywhere.
# Contraction would fuse a product and a sum that the reference rounds separately.
FLAGS = ["-std=c11", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def target() -> str:
    """Name the processor to build for: on a Mac one, also where Python itself is made for two."""
    if sys.platform == "darwin":
        return os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}").split()[-1]
    return platform.machine()


def native() -> Extension:
    """Describe the extension for that processor."""
    names = COMMON + VARIANTS.get(MACHINES.get(target(), ""), [])
    return Extension(
        "tpack.kernels._native",
        [str(FOLDER / f"{name}.c") for name in names],
        depends=[str(path) for path in sorted(FOLDER.glob("*.h"))],
        extra_compile_args=FLAGS if sys.platform != "win32" else ["/std:c11", "/O2"],
        libraries=["dl", "pthread"] if sys.platform.startswith("linux") else [],
        # free-threaded Python 3.11-3.14 has no limited API
        define_macros=[] if FREE_THREADED else [("Py_LIMITED_API", "0x030B0000")],
        py_limited_api=not FREE_THREADED,
        optional=True,
    )


class Wheel(bdist_wheel):
    """Tags the wheel abi3: the extension uses the limited API only."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform_name = super().get_tag()
        if python.startswith("cp") and not FREE_THREADED:
            return "cp311", "abi3", platform_name
        return python, abi, platform_name


setup(ext_modules=[native()], cmdclass={"bdist_wheel": Wheel})
