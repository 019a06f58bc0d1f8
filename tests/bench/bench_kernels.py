"""Run with `python tests/bench/bench_kernels.py [variant …]`; pytest does not collect it."""

import json
import sys

from tpack import kernels
from tpack.kernels import bench

if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--json"]
    for name in names or [kernels.variant()]:
        with kernels.forced(name):
            rows = bench.run()
            if "--json" in sys.argv:
                print(json.dumps({"variant": name, "rows": [row.to_dict() for row in rows]}))
            else:
                print(f"variant {name}\n{bench.table(rows)}")
