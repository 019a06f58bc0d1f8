"""Run a snippet in the Python of its system: `python call.py SNIPPET IN.npz OUT.npz MODE`.

A snippet defines ``quantize(weight, mode)``, which gives the matrix that comes back and what is
stored of it, and ``by_hand(trits, scale)``, which puts codes and scales of ours into the format.
"""

import runpy
import sys

import numpy as np


def numpy_of(array: object) -> np.ndarray:
    """A matrix of any framework, in float32."""
    array = array.detach().float() if hasattr(array, "detach") else array
    return np.array(array, dtype=np.float32)


def call(snippet: str, source: str, destination: str, mode: str) -> None:
    """Write what comes back, and how many bytes are stored of it."""
    functions, given = runpy.run_path(snippet), np.load(source)
    returned, stored = functions["quantize"](given["weight"], mode)
    results = {"returned": numpy_of(returned), "bytes": sum(part.nbytes for part in stored)}
    if "by_hand" in functions:
        scale = float(given["scale"])
        results["by_hand"] = numpy_of(functions["by_hand"](given["trits"], scale))
    np.savez(destination, **results)


if __name__ == "__main__":
    call(*sys.argv[1:])
