"""What is fuzzed: functions of bytes that return, or raise what is a bug.

Each takes any bytes. A refusal (a TpackError) is an answer; so is an accepted input whose result
holds what the target checks. Any other exception, and any check that fails, is a finding.
``run.py`` drives them; ``test_fuzz.py`` runs each on its seeds.
"""

# ruff: noqa: PT017 -- an input may be accepted or refused; a refusal is checked too

from __future__ import annotations

import atexit
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import random_trees
import safetensors
import seeds
from audit import nothing_runs
from drawing import Draw
from source_names import strangers

from tpack import codec, hfconfig, kernels as native
from tpack.codegen import generate_pytorch_code
from tpack.container import Checkpoint, read_index
from tpack.container.header import TensorFile
from tpack.container.index import INDEX
from tpack.container.strictjson import canonical_json, parse_json
from tpack.dialects import gguf_values
from tpack.difference import diff
from tpack.dtypes import BY_NAME
from tpack.errors import FormatError, LayerDefError, NotTernaryError, TpackError, UsageError, locate
from tpack.hfconfig import read_config
from tpack.inspection import inspect
from tpack.layerdef import LayerDef, Program, slots, validate
from tpack.layerdef.names import is_identifier, is_position
from tpack.options import Reading
from tpack.sources import PackedTensor, Source, SourceTensor, open_source
from tpack.sources.dialects import adapt
from tpack.sources.onnx_files import open_onnx
from tpack.sources.pickles.files import Storages
from tpack.sources.pickles.opcodes import read_pickle
from tpack.sources.pickles.values import Placeholder
from tpack.verification import verify

Target = Callable[[bytes], None]


@dataclass(frozen=True)
class Fuzzed:
    """A target, inputs to begin with, and words that its inputs are made of."""

    function: Target
    seeds: Callable[[], Iterator[bytes]]
    words: tuple[str, ...] = field(default=())
    longest: int = 4096


@cache
def _folder() -> Path:
    """A folder for each process; ``run.py`` has it in memory."""
    folder = Path(tempfile.mkdtemp(prefix="tpack-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _file(data: bytes, name: str) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


def _check_refusal(error: TpackError, path: Path) -> None:
    """A refusal is a sentence of one line that names its file."""
    text = str(error)
    assert error.code in (2, 3, 4), text
    assert str(path) in text, text
    assert len(text) < 2000, text
    assert text.isprintable(), text


# ---- JSON and headers


def strict_json(data: bytes) -> None:
    """What is accepted is what the json module reads, and comes back from canonical text."""
    try:
        value = parse_json(data, "R3", "text")
    except FormatError as error:
        assert len(str(error)) < 400, str(error)
        return
    assert value == json.loads(data)
    text = canonical_json(value)
    assert text.isascii()
    assert parse_json(text.encode(), "R3", "text") == value


def header(data: bytes) -> None:
    """Every file that is accepted is accepted by the safetensors crate too, alike."""
    path = _file(data, "header.safetensors")
    try:
        with TensorFile(path) as file:
            found = {
                entry.name: (entry.shape, bytes(file.read(name)))
                for name, entry in file.entries.items()
            }
    except TpackError as error:
        _check_refusal(error, path)
        return
    theirs = {
        name: (tuple(info["shape"]), bytes(info["data"]))
        for name, info in safetensors.deserialize(data)
    }
    assert theirs == found


def checkpoint(data: bytes) -> None:
    """A whole file, read by all that reads files: a refusal, or a report that is plain JSON."""
    path = _file(data, "checkpoint.safetensors")
    for command in (inspect, verify, lambda p: diff(p, p)):
        try:
            report = command(path)
        except TpackError as error:
            _check_refusal(error, path)
            continue
        json.dumps(report.to_dict(), allow_nan=False)
    with suppress(TpackError), Checkpoint(path) as file:
        for name, _ in file.ternary():
            with suppress(NotTernaryError):
                for _, trits in file.trit_blocks(name):
                    assert np.abs(trits).max(initial=0) <= 1
        if file.document.program is not None:
            _generate(file.document.program)
    with suppress(TpackError), open_source(path) as source:
        _read(source)


# ---- trees


def _generate(program: Program) -> None:
    """Source of a validated program: it parses, and nothing in it is a stranger."""
    try:
        source = generate_pytorch_code(program)
        alone = generate_pytorch_code(program, standalone=True)
    except LayerDefError as error:
        assert len(str(error)) < 2000, str(error)
        return
    assert not (found := strangers(source, program)), found
    compile(source, "generated", "exec", dont_inherit=True)
    compile(alone, "generated", "exec", dont_inherit=True)


def _tree(data: Any) -> None:
    try:
        program = Program.from_dict(data)
        validate(program)
    except LayerDefError as error:
        assert len(str(error)) < 2000, str(error)
        assert str(error).isprintable(), str(error)
        return
    written = program.to_dict()
    assert Program.from_dict(json.loads(json.dumps(written, allow_nan=False))) == program
    for number, slot in enumerate(slots(program)):
        assert all(is_identifier(p) or is_position(p) for p in slot.name.split(".")) or slot.name
        if number > 100:
            break
    _generate(program)


def layerdef(data: bytes) -> None:
    """JSON as a program: what is read is written again alike, and printed."""
    try:
        value = parse_json(data, "R8", "text")
    except FormatError:
        return
    _tree(value)
    with suppress(LayerDefError):
        layer = LayerDef.from_dict(value)
        assert LayerDef.from_dict(layer.to_dict()) == layer


def codegen(data: bytes) -> None:
    """Trees drawn from bytes, most of them valid: what is accepted is printed."""
    _tree(random_trees.program(Draw(data)))


# ---- indices and configs


def index(data: bytes) -> None:
    """The index of a folder: a refusal, or names of files beside it."""
    folder = _folder() / "index"
    folder.mkdir(exist_ok=True)
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).touch()
    path = folder / INDEX
    path.write_bytes(data)
    try:
        found = read_index(path)
    except TpackError as error:
        _check_refusal(error, path)
        return
    assert found.files
    assert all((folder / name).parent == folder for name in found.files)


def config(data: bytes) -> None:
    """A config.json: packed and plain again it is the same."""
    folder = _folder() / "config"
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_bytes(data)
    try:
        found = read_config(folder)
    except TpackError as error:
        _check_refusal(error, path)
        return
    assert found is not None
    packed = hfconfig.packed_config(found)
    assert hfconfig.is_packed(packed)
    if not hfconfig.is_packed(found):
        assert hfconfig.plain_config(packed) == found
    else:
        with suppress(TpackError):
            hfconfig.plain_config(found)
    _adapt(Draw(data[::-1]), found)


# ---- sources


def _read(source: Source) -> None:
    """Read every tensor of a source whole, as convert would."""
    for tensor in source.tensors.values():
        if isinstance(tensor, PackedTensor):
            for _, rows in tensor.blocks():
                codec.unpack(rows, tensor.shape[-1])
            _read_elements(tensor.dense())
        else:
            _read_elements(tensor)


def _read_elements(tensor: SourceTensor) -> None:
    assert sum(chunk.nbytes for chunk in tensor.chunks()) == tensor.nbytes


def whole_file(name: str, data: bytes) -> None:
    """A file of another kind, all of it read."""
    path = _file(data, name)
    try:
        with open_source(path) as source:
            json.loads(source.metadata.get("gguf", "{}"))
            _read(source)
    except TpackError as error:
        _check_refusal(error, path)


def numpy(data: bytes) -> None:
    """An array or an archive of NumPy, all of it read; an array is what numpy loads."""
    path = _file(data, "file.npy")
    try:
        with open_source(path) as source:
            _read(source)
            found = {name: tensor.read(0, tensor.numel) for name, tensor in source.tensors.items()}
    except TpackError as error:
        _check_refusal(error, path)
        return
    if data.startswith(b"\x93NUMPY") and found:
        theirs = np.load(path, allow_pickle=False)
        assert found["file"].tobytes() == theirs.astype(theirs.dtype.newbyteorder("=")).tobytes()


def onnx(data: bytes) -> None:
    """An ONNX model, all of it read."""
    path = _file(data, "file.onnx")
    try:
        with locate(file=path), open_onnx(path, Reading()) as source:
            _read(source)
    except TpackError as error:
        _check_refusal(error, path)


def gguf_json(data: bytes) -> None:
    """Metadata of GGUF that a checkpoint carries, as bytes for a file and as JSON again."""
    try:
        value = parse_json(data, "R8", "text")
        found = gguf_values.from_json(value)
    except TpackError:
        return
    gguf_values.encode(found)
    assert gguf_values.from_json(gguf_values.to_json(found)).kind == found.kind
    _ = found.plain


_NAMES = (
    *("m.weight", "m.weight_scale", "m.weight_packed", "m.weight_shape", "m.scales", "m.biases"),
    *("m.bias", "n.weight", "n.weight_scale", "weight", "weight_scale", "m.weight_zero_point"),
    *("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight_scale"),
)
_STORED = ("uint8", "int32", "uint32", "float32", "float16", "bfloat16", "int64", "int8")


def _adapt(draw: Draw, config: Mapping[str, Any]) -> None:
    """Tensors drawn from bytes, in whatever dialect the config names."""
    tensors = {}
    for _ in range(1 + draw.below(6)):
        name, dtype = draw.one(_NAMES), draw.one(_STORED)
        shape = tuple(draw.one((1, 2, 4, 8, 16, 0)) for _ in range(draw.below(4)))
        tensors[name] = _stored(name, dtype, shape, draw.some(40))
    try:
        found, notes = adapt(tensors, config)
        _read(Source("drawn", found))
    except TpackError as error:
        assert len(str(error)) < 2000, str(error)
        return
    assert all(isinstance(note, str) for note in notes)


def _stored(name: str, dtype: str, shape: tuple[int, ...], content: bytes) -> SourceTensor:
    size = BY_NAME[dtype].nbytes(math.prod(shape))
    data = (content * (size // max(len(content), 1) + 1) if content else bytes(size))[:size]
    kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    array = np.frombuffer(data, dtype=kind)
    return SourceTensor(name, dtype, shape, lambda start, stop: array[start:stop])


def dialects(data: bytes) -> None:
    """The dialects of others, on tensors and configs drawn from bytes."""
    draw = Draw(data)
    found = json.loads(json.dumps(draw.one(seeds.CONFIGS)))
    place = found
    for _ in range(draw.below(6)):  # somewhere inside of it, one value becomes another
        keys = list(place)
        key = keys[draw.below(len(keys))] if keys else ""
        if isinstance(place.get(key), dict) and draw.chance(2):
            place = place[key]
        elif draw.chance(2) and keys:
            place[key] = draw.one((None, True, 0, 2, -1, 2.5, "", "int", "group", "online", [], {}))
        else:
            word = draw.one(("strategy", "mode", "group_size", "linear_class", "quantization_mode"))
            place[word] = draw.one((None, True, 32, "offline", "online", "affine", [], {}, [[]]))
    _adapt(draw, found)


def pickles(data: bytes) -> None:
    """A pickle, as that of an archive with two storages: nothing runs, whatever is in it."""
    storages = Storages()
    b"".decode("raw-unicode-escape")  # a codec is imported when it is first needed
    try:
        with nothing_runs():
            value, _, _ = read_pickle(data, storages)
    except Exception:  # noqa: BLE001  damaged, it fails wherever reading first stumbles
        return
    if not isinstance(value, dict | Placeholder) or not storages.found:
        return
    path = _folder() / "pickle.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", data)
        for key in "01":
            file.writestr(f"m/data/{key}", bytes(range(64)))
    try:
        with open_source(path) as source:
            _read(source)
    except TpackError as error:
        _check_refusal(error, path)


# ---- codecs and kernels


def packing(data: bytes) -> None:
    """Layouts against the digits of their bytes, taken one by one."""
    draw = Draw(data)
    layout, rows = draw.one(("t2", "t5")), 1 + draw.below(3)
    per_byte = 4 if layout == "t2" else 5
    columns = draw.below(40)
    width = -(-columns // per_byte)
    raw = np.frombuffer(draw.rest().ljust(rows * width, b"\x55")[: rows * width], np.uint8)
    packed = raw.reshape(rows, width)
    wanted: list[list[int]] | None = []
    for row in packed.tolist():
        digits = []
        for byte in row:
            rest = byte
            for place in range(per_byte):
                if layout == "t2":
                    digits.append((byte >> 2 * place & 3) - 1)
                else:
                    rest *= 3
                    digits.append((rest >> 8) - 1)
                    rest &= 255
        wanted.append(digits[:columns])
    try:
        trits = codec.unpack(packed, columns, layout)
    except NotTernaryError as error:
        assert error.index is not None
        row, byte = error.index
        digits = [int(packed[row, byte]) >> shift & 3 for shift in (0, 2, 4, 6)]
        assert layout == "t5" or 3 in digits
        return
    assert trits.tolist() == wanted
    again = codec.pack(trits, layout)
    assert codec.unpack(again, columns, layout).tolist() == wanted
    if width:
        assert (again[:, : columns // per_byte] == packed[:, : columns // per_byte]).all()


def scales(data: bytes) -> None:
    """Text and shapes that say how scales lie."""
    draw = Draw(data)
    text = draw.some(12).decode("latin-1")
    with suppress(UsageError):
        found = codec.Scale.parse(text)
        assert str(found) == text
    shape = tuple(1 + draw.below(300) for _ in range(1 + draw.below(3)))
    scale = tuple(1 + draw.below(300) for _ in range(draw.below(4)))
    split = draw.below(len(shape))
    with suppress(UsageError):
        found = codec.Scale.of(scale, shape, split, draw.one((0, 0, 4, 32, 128)))
        assert found.shape(shape, split) == scale


def kernels(data: bytes) -> None:
    """The C entry points as Python calls them, against numpy: the same integers and bits."""
    draw = Draw(data)
    rows, columns, tokens = draw.below(9), draw.below(600), draw.below(4)
    group = draw.one((0, 1, 4, 12, 16, 32, 64, 128, 256))
    groups = 1 if group < 2 else -(-columns // group)
    shape = (1,) if group == 0 else (rows, groups)
    width = -(-columns // 4)
    packed = _filled(draw, rows * width, np.uint8).reshape(rows, width)
    scale = _filled(draw, math.prod(shape), np.int8).astype(np.float32).reshape(shape) / 8
    x = _filled(draw, tokens * columns, np.int8).astype(np.float32).reshape(tokens, columns)
    calls = (
        lambda: native.unpack(packed, columns, draw.one((np.int8, np.float32, np.float16))),
        lambda: native.dequantize(packed, columns, scale, group),
        lambda: native.bit_linear(x, packed, scale, None, group),
    )
    for call in calls:
        position = draw.position
        found = []
        for variant in (native.variant(), "numpy"):
            draw.position = position
            with native.forced(variant):
                try:
                    found.append(call())
                except ValueError as error:
                    found.append(np.frombuffer(str(error).encode(), np.uint8))
        if call is calls[-1] and found[0].shape != (tokens, rows):
            continue
        assert found[0].dtype == found[1].dtype
        assert np.array_equal(found[0], found[1]), (rows, columns, tokens, group)
        if len(found[0]) and found[0].ndim == 1:  # code 3: the products do not look for it
            return


def _filled(draw: Draw, count: int, dtype: Any) -> np.ndarray[Any, Any]:
    """Values of one byte, a drawn pattern again and again."""
    pattern = np.frombuffer(draw.some(64) or b"\x49", np.uint8)
    return np.resize(pattern, count).view(dtype)


# ---- the table


TARGETS = {
    "json": Fuzzed(strict_json, seeds.json_texts, seeds.FORMAT_WORDS),
    "header": Fuzzed(header, seeds.files, seeds.FORMAT_WORDS),
    "checkpoint": Fuzzed(checkpoint, seeds.files, (*seeds.FORMAT_WORDS, *seeds.TREE_WORDS)),
    "layerdef": Fuzzed(layerdef, seeds.programs, seeds.TREE_WORDS),
    "codegen": Fuzzed(codegen, lambda: seeds.random(64, 300), longest=600),
    "index": Fuzzed(index, seeds.indices, seeds.CONFIG_WORDS, 1024),
    "config": Fuzzed(config, seeds.configs, seeds.CONFIG_WORDS, 2048),
    "gguf": Fuzzed(
        partial(whole_file, "file.gguf"),
        seeds.gguf,
        ("GGUF", "general.architecture", "general.alignment"),
    ),
    "numpy": Fuzzed(numpy, seeds.arrays, ("NUMPY", "'<f4'", "True", "(2, 3)"), 1024),
    "onnx": Fuzzed(onnx, seeds.onnx, ("MatMul", "DequantizeLinear", "Quant", "w", "q", "s", "x")),
    "tflite": Fuzzed(partial(whole_file, "file.tflite"), seeds.tflite_files, ("TFL3",)),
    "gguf_json": Fuzzed(gguf_json, seeds.gguf_json, longest=1024),
    "dialects": Fuzzed(dialects, lambda: seeds.random(32), longest=400),
    "pickles": Fuzzed(pickles, seeds.pickles, seeds.PICKLE_WORDS, longest=2048),
    "packing": Fuzzed(packing, seeds.random, longest=160),
    "scales": Fuzzed(scales, lambda: iter([b"\x08group:128\2\3\4\5\6", b"\3row\1\2"]), longest=64),
    "kernels": Fuzzed(kernels, seeds.random, longest=600),
}
