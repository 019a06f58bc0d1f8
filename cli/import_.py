"""``tpack import``: the command ``convert`` under a name for files of other systems."""

from __future__ import annotations

from tpack.cli import options
from tpack.cli.convert import convert

import_ = options.Described(
    "import",
    described=convert.described,
    callback=convert.callback,
    params=convert.params,
    short_help="Convert what another system has packed; the same as convert.",
    help="""Convert what another system has packed: the same command as convert.

    \b
    SOURCE is a .gguf file, or a folder in the bitnet packing of transformers, in
    compressed-tensors, or in MLX's 2 bits. Trits and scales are taken as they are.

    \b
    Example:
      tpack import model.gguf -o model.tpack.safetensors
    """,
)
