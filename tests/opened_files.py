"""What tests ask of a file that was opened: its values, and what a refusal costs."""

import subprocess
import sys
import textwrap
from itertools import pairwise

import numpy as np


def values(source):
    """Every tensor of a source, read in uneven pieces; bfloat16 and float8 as bits."""
    found = {}
    for name, tensor in source.tensors.items():
        cuts = [0, tensor.numel // 3, tensor.numel]
        whole = np.concatenate([tensor.read(a, b) for a, b in pairwise(cuts)])
        found[name] = whole.reshape(tensor.shape)
    return found


def check_refusal(path, text):
    """Open a file in a process of its own: it is refused, with a text, in 6 s and 256 MB."""
    code = """
        import sys, time
        from tpack.errors import TpackError
        from tpack.sources import open_source
        try:
            open_source(sys.argv[1])
        except TpackError as error:
            print(error)
        status = open("/proc/self/status").read()
        print(time.process_time(), int(status.split("VmHWM:")[1].split()[0]) / 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    message, figures = done.stdout.splitlines()
    seconds, megabytes = map(float, figures.split())
    assert text in message
    assert len(message) < 1000
    assert seconds < 6  # a tenth of that on a machine with nothing else to do
    assert megabytes < 256
