"""One ternary matrix in each format that has ternary weights: how large, and whether damage shows.

Each file is written by the format's own library where there is one, and opened by its own reader
after one bit of a weight was flipped. `python tests/formats.py` prints the table of the README.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from gguf import GGMLQuantizationType as Type
from hf_models import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import tpack

ROWS = COLUMNS = 2048
SCALE = 0.5


@dataclass(frozen=True)
class Format:
    """A way to store a ternary matrix.

    Attributes:
        write: makes the file, from trits of shape ``(2048, 2048)``.
        read: opens all of it as users of the format do; raises if it finds damage.
        scales: what may share one, in the words of the table.
        architecture: what the file says of the model, in the words of the table.
    """

    name: str
    write: Callable[[Tensor, Path], object]
    read: Callable[[Path], object]
    scales: str
    architecture: str


def write_bfloat16(trits: Tensor, path: Path) -> None:
    save_file({"weight": (trits * SCALE).bfloat16()}, path)


def write_bitnet(trits: Tensor, path: Path) -> None:
    pack = transformers().integrations.bitnet.pack_weights
    save_file({"weight": pack(trits), "weight_scale": torch.tensor([1 / SCALE])}, path)


def write_compressed(trits: Tensor, path: Path) -> None:
    state = {
        "weight_packed": pack_to_int32(trits, 2),
        "weight_scale": torch.full((ROWS, COLUMNS // 128), SCALE, dtype=torch.bfloat16),
        "weight_shape": torch.tensor([ROWS, COLUMNS]),
    }
    save_file(state, path)


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


def read_gguf(path: Path) -> None:
    for tensor in gguf.GGUFReader(path).tensors:
        gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def write_tpack(layout: str) -> Callable[[Tensor, Path], None]:
    def write(trits: Tensor, path: Path) -> None:
        state = {"weight": (trits * SCALE).bfloat16()}
        tpack.convert(state, path, exact=True, layout=layout)

    return write


def read_tpack(path: Path) -> None:
    if not tpack.verify(path).ok:
        raise ValueError


FORMATS = (
    Format("safetensors, bfloat16", write_bfloat16, load_file, "—", "—"),
    Format("transformers' bitnet", write_bitnet, load_file, "tensor", "named in config.json"),
    Format(
        "compressed-tensors, 2 bits",
        write_compressed,
        load_file,
        "tensor, row, group",
        "named in config.json",
    ),
    Format("GGUF TQ2_0", write_gguf(Type.TQ2_0), read_gguf, "256 weights", "named in the file"),
    Format("GGUF TQ1_0", write_gguf(Type.TQ1_0), read_gguf, "256 weights", "named in the file"),
    Format("tpack t2", write_tpack("t2"), read_tpack, "tensor, row, column, group", "LayerDefs"),
    Format("tpack t5", write_tpack("t5"), read_tpack, "tensor, row, column, group", "LayerDefs"),
)


def measure(kind: Format, trits: Tensor, folder: Path) -> tuple[float, bool]:
    """Bits for each weight of the whole file, and whether a flipped bit is noticed."""
    path = folder / "file"
    kind.write(trits, path)
    bits = 8 * path.stat().st_size / trits.numel()
    kind.read(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    try:
        kind.read(path)
    except ValueError:
        return bits, True
    finally:
        path.unlink()
    return bits, False


def table() -> str:
    """The table, in Markdown."""
    trits = torch.randint(-1, 2, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))
    lines = [
        "| format | bits per weight | one scale for a | architecture | flipped bit |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other libraries
        for kind in FORMATS:
            bits, noticed = measure(kind, trits.to(torch.int8), Path(folder))
            found = "found by verify" if noticed else "not noticed"
            lines.append(
                f"| {kind.name} | {bits:.2f} | {kind.scales} | {kind.architecture} | {found} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
