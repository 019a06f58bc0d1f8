"""One ternary matrix in each format that has ternary weights: how large, and whether damage shows.

Each file is written by the format's own library where there is one. Then single bits of it are
flipped, and it is loaded and used by its own reader, and checked by its own check.

Usage: python tests/formats.py docs/why.md
"""

from __future__ import annotations

import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from gguf import GGMLQuantizationType as Type
from hf_models import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import tpack

BEGIN, END = "<!-- formats: begin -->\n\n", "\n\n<!-- formats: end -->"
BITNET = transformers().integrations.bitnet
SCALE = 0.5
#: Of the matrix whose files are weighed, and of the smaller one whose bits are flipped.
WEIGHED, FLIPPED = (2048, 2048), (64, 512)
#: How many bytes are damaged, each bit of them by itself.
BYTES = 16


@dataclass(frozen=True)
class Format:
    """A way to store a ternary matrix.

    Attributes:
        write: makes the file, from trits.
        use: loads all of it and uses the weight, as users of the format do.
        scales: what may share one, in the words of the table.
        architecture: what the file says of the model, in the words of the table.
        checks: what the format has to look for damage, each with its name; they raise.
    """

    name: str
    write: Callable[[Tensor, Path], object]
    use: Callable[[Path], object]
    scales: str
    architecture: str
    checks: dict[str, Callable[[Path], object]] = field(default_factory=dict)


def write_bfloat16(trits: Tensor, path: Path) -> None:
    save_file({"weight": (trits * SCALE).bfloat16()}, path)


def write_torch(trits: Tensor, path: Path) -> None:
    torch.save({"weight": (trits * SCALE).bfloat16()}, path)


def check_zip(path: Path) -> None:
    if zipfile.ZipFile(path).testzip():
        raise ValueError


def write_bitnet(trits: Tensor, path: Path) -> None:
    save_file(
        {"weight": BITNET.pack_weights(trits), "weight_scale": torch.tensor([1 / SCALE])}, path
    )


def use_bitnet(path: Path) -> None:
    BITNET.unpack_weights(load_file(path)["weight"], torch.float32)


def write_compressed(trits: Tensor, path: Path) -> None:
    rows, columns = trits.shape
    state = {
        "weight_packed": pack_to_int32(trits, 2),
        "weight_scale": torch.full((rows, columns // 128), SCALE, dtype=torch.bfloat16),
        "weight_shape": torch.tensor([rows, columns]),
    }
    save_file(state, path)


def use_compressed(path: Path) -> None:
    state = load_file(path)
    unpack_from_int32(state["weight_packed"], 2, torch.Size(state["weight_shape"]))


def write_gguf(kind: Type) -> Callable[[Tensor, Path], None]:
    def write(trits: Tensor, path: Path) -> None:
        writer = gguf.GGUFWriter(path, "llama")
        data = gguf.quants.quantize((trits * SCALE).numpy(), kind)
        writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


def use_gguf(path: Path) -> None:
    for tensor in gguf.GGUFReader(path).tensors:
        gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def write_tpack(layout: str) -> Callable[[Tensor, Path], None]:
    def write(trits: Tensor, path: Path) -> None:
        state = {"weight": (trits * SCALE).bfloat16()}
        tpack.convert(state, path, exact=True, layout=layout)

    return write


def use_tpack(path: Path) -> None:
    with torch.no_grad():
        tpack.load(path)(torch.ones(1, FLIPPED[1]))


def load_verified(path: Path) -> None:
    tpack.load(path, verify=True)


def verify_tpack(path: Path) -> None:
    if not tpack.verify(path).ok:
        raise ValueError


SCALES = "tensor, row, column, group"
VERIFY = {"`load(verify=True)`": load_verified, "`tpack verify`": verify_tpack}
FORMATS = (
    Format("safetensors, bfloat16", write_bfloat16, load_file, "—", "—"),
    Format(
        "torch `.pt`, bfloat16",
        write_torch,
        torch.load,
        "—",
        "—",
        {"`zipfile`'s `testzip`": check_zip},
    ),
    Format("transformers' bitnet", write_bitnet, use_bitnet, "tensor", "named in config.json"),
    Format(
        "compressed-tensors, 2 bits",
        write_compressed,
        use_compressed,
        "tensor, row, group",
        "named in config.json",
    ),
    Format("GGUF TQ2_0", write_gguf(Type.TQ2_0), use_gguf, "256 weights", "named in the file"),
    Format("GGUF TQ1_0", write_gguf(Type.TQ1_0), use_gguf, "256 weights", "named in the file"),
    Format("tpack t2", write_tpack("t2"), use_tpack, SCALES, "LayerDefs", VERIFY),
    Format("tpack t5", write_tpack("t5"), use_tpack, SCALES, "LayerDefs", VERIFY),
)


def random_trits(shape: tuple[int, int]) -> Tensor:
    trits = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(0))
    return trits.to(torch.int8)


def weigh(kind: Format, path: Path) -> float:
    """Bits for each weight of the whole file."""
    trits = random_trits(WEIGHED)
    kind.write(trits, path)
    bits = 8 * path.stat().st_size / trits.numel()
    path.unlink()
    return bits


def notices(look: Callable[[Path], object], path: Path) -> bool:
    """Whether it raises."""
    try:
        look(path)
    except Exception:  # noqa: BLE001  # each library has its own
        return True
    return False


def flip(kind: Format, path: Path) -> list[float]:
    """The shares of single flipped bits that use notices, and that each check does."""
    kind.write(random_trits(FLIPPED), path)
    whole = path.read_bytes()
    looks = [kind.use, *kind.checks.values()]
    found = np.zeros(len(looks))
    assert not any(notices(look, path) for look in looks)
    # in the middle half of the file are the bytes of weights, and of scales between them
    places = np.linspace(len(whole) // 4, len(whole) * 3 // 4, BYTES).astype(int)
    for place in places:
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            found += [notices(look, path) for look in looks]
    path.unlink()
    return list(found / (BYTES * 8))


def table() -> str:
    """The table, in Markdown."""
    lines = [
        "| format | bits per weight | one scale for a | architecture | loading and use notice "
        "| its own check notices |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other libraries
        path = Path(folder) / "file"
        for kind in FORMATS:
            bits = weigh(kind, path)
            used, *checked = (f"{100 * share:.0f} %" for share in flip(kind, path))
            named = [f"{name}: {share}" for name, share in zip(kind.checks, checked, strict=True)]
            cells = [kind.name, f"{bits:.2f}", kind.scales, kind.architecture, used]
            lines.append(f"| {' | '.join(cells)} | {', '.join(named) or 'it has none'} |")
    return "\n".join(lines)


def main(page: Path) -> None:
    """Write the table anew."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
