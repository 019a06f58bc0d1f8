"""Make the corpus: small checkpoints that must be read, and files that must be refused.

``python tests/corpus/make.py`` writes both folders again, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tpack.container import INDEX
from tpack.conversion import convert
from tpack.layerdef import LayerDef, Param, Unspecified

HERE = Path(__file__).parent
ACCEPT = HERE / "accept"
REJECT = HERE / "reject"

#: What a header calls a dtype → what the digest of the description calls it.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "U8": "uint8",
    "F4": "float4_e2m1fn",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
}


def trits(*shape: int) -> torch.Tensor:
    """Ternary values without a pattern that a row repeats, float32."""
    count = int(torch.tensor(shape).prod())
    return (((torch.arange(count) * 7) // 4) % 3 - 1).reshape(shape).float()


def checkpoints() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Sources and options of the accepted files."""
    row_scales = torch.tensor([[0.5], [2.0], [0.25]])
    group_scales = torch.tensor([0.5, 1.5, 3.0]).repeat_interleave(32)[:70]
    tied = trits(4, 3)
    vector = LayerDef("Vector", [Param("v", "TernaryTensor", [6])], [Unspecified()])
    deep = {f"blocks.{i}.fc.weight": trits(4, 4) * (i + 1) for i in range(3)}
    kinds = {
        "fc.weight": trits(3, 4),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 3),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "eighth": torch.arange(8, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "phase": torch.tensor([1 + 2j, -1j], dtype=torch.complex64),
        "wide": torch.tensor([0.1, 0.2], dtype=torch.float64),
    }
    four = torch.arange(6, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(2, 3)
    return {
        "linear": ({"fc.weight": trits(3, 5) * 0.5, "fc.bias": torch.arange(3.0)}, {}),
        "row_bf16": ({"fc.weight": (trits(3, 5) * row_scales).bfloat16()}, {}),
        "group_f16_t5": (
            {"fc.weight": (torch.ones(2, 70) * group_scales).half()},
            {"layout": "t5"},
        ),
        "column": ({"fc.weight": trits(6, 5) * torch.tensor([0.5, 1, 3, 0.25, 6])}, {}),
        "conv": ({"conv.weight": trits(4, 3, 3, 3), "conv.bias": torch.arange(4.0)}, {}),
        "blocks": (deep, {}),
        "kinds": (kinds, {}),
        "sub_byte": ({"fc.weight": trits(3, 4), "up.weight": four}, {"exclude": ["up.weight"]}),
        "names": ({"class.née 1": trits(4, 4)}, {}),
        "tied": ({"a.weight": tied, "b.weight": tied}, {}),
        "quantized": ({"fc.weight": (torch.arange(12.0) - 5).reshape(3, 4)}, {}),
        "int8": ({"fc.weight": (trits(3, 5) * 3).to(torch.int8)}, {}),
        "vector": ({"v": trits(6)}, {"layerdef": vector}),
    }


def accepted(name: str) -> bytes:
    """The bytes that the writer makes of one source."""
    source, options = checkpoints()[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.safetensors")
        convert(source, path, **options)
        return path.read_bytes()


def others() -> dict[str, bytes]:
    """The accepted files that another writer makes, by name."""
    header, description, data = parts(accepted("linear"))
    return {"minor_newer": build(header, description | {"version": [1, 7]}, data)}


def parts(blob: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """A file as its header, its description and its data."""
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["tpack"]), blob[8 + length :]


def raw(text: str | bytes, data: bytes) -> bytes:
    """A file of a header's text and data."""
    body = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    body += b" " * (-(8 + len(body)) % 64)
    return len(body).to_bytes(8, "little") + body + data


def canonical(data: Any) -> str:
    """JSON without spaces, keys sorted."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def build(header: dict[str, Any], description: dict[str, Any] | None, data: bytes) -> bytes:
    """A file of its parts; the description's own digest is computed anew."""
    header = deepcopy(header)
    if description is not None:
        rest = {key: value for key, value in description.items() if key != "sha256"}
        entries = {
            name: [DTYPES.get(str(value["dtype"]), "?"), value["shape"]]
            for name, value in header.items()
            if name != "__metadata__"
        }
        own = hashlib.sha256(canonical([rest, entries]).encode()).hexdigest()
        full = description | ({"sha256": own} if "sha256" in description else {})
        header["__metadata__"]["tpack"] = canonical(full)
    return raw(canonical(header), data)


def rejected() -> dict[str, bytes]:
    """The refused files by name; each breaks one rule of an otherwise good file."""
    base = accepted("linear")
    header, description, data = parts(base)
    length = int.from_bytes(base[:8], "little")
    text = base[8 : 8 + length].decode().rstrip()
    files: dict[str, bytes] = {
        "R01_empty": b"",
        "R01_seven_bytes": base[:7],
        "R02_length_beyond_file": (len(base)).to_bytes(8, "little") + base[8:],
        "R02_length_huge": b"\xff" * 8 + base[8:],
        "R02_length_over_cap": (100_000_001).to_bytes(8, "little") + base[8:],
        "R02_zip": b"PK\x03\x04" + bytes(200),
        "R03_not_json": raw(text[:-1], data),
        "R03_not_object": raw("[]", b""),
        "R03_not_utf8": raw(text.encode().replace(b"fc.bias", b"fc.b\xffas"), data),
        "R03_duplicate_key": raw(text[:-1] + ',"fc.bias":{}}', data),
        "R03_nan": raw(text[:-1] + ',"x":NaN}', data),
        "R03_deep": raw("[" * 300 + "]" * 300, b""),
        "R03_big_integer": raw(text.replace('"shape":[3]', '"shape":[9223372036854775808]'), data),
        "R03_lone_surrogate": raw(text.replace("fc.bias", "fc.\\ud800"), data),
        "R03_trailing_text": raw(text + "{}", data),
        "R03_byte_order_mark": raw("\ufeff" + text, data),
        "R03_empty_header": raw("", b""),
    }

    def change(
        name: str,
        edit: Callable[[dict[str, Any], dict[str, Any]], Any],
        more: bytes = b"",
        cut: int = 0,
    ) -> None:
        new_header, new_description = deepcopy(header), deepcopy(description)
        edit(new_header, new_description)
        files[name] = build(new_header, new_description, data[: len(data) - cut] + more)

    def shard(**fields: Any) -> dict[str, Any]:
        return {"number": 1, "of": 2, "program_sha256": "0" * 64} | fields

    def on_bias(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], Any]:
        return lambda h, _: h["fc.bias"].update(fields)

    def layers(d: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = d["program"]["layers"]
        return found

    call = {"node": "FunctionCall", "function": "os.system", "args": []}
    files["R04_not_object"] = raw(canonical(header | {"fc.bias": 1}), data)
    change("R04_missing_field", lambda h, _: h["fc.bias"].pop("data_offsets"))
    change("R04_surplus_field", on_bias(offset=3))
    change("R04_negative_dim", on_bias(shape=[-3]))
    change("R04_bool_dim", on_bias(shape=[True, 3]))
    change("R04_float_dim", on_bias(shape=[3.0]))
    change("R04_shape_no_list", on_bias(shape="3"))
    change("R04_offsets_reversed", on_bias(data_offsets=[12, 0]))
    change("R04_offsets_three", on_bias(data_offsets=[0, 12, 12]))
    change("R04_offsets_negative", on_bias(data_offsets=[-1, 11]))
    change("R05_unknown_dtype", on_bias(dtype="F31"))
    change("R05_dtype_no_string", on_bias(dtype=["F32"]))
    change("R05_span", on_bias(shape=[4]))
    change("R05_half_byte", on_bias(dtype="F4", shape=[3, 3]))
    change("R05_overflow", on_bias(shape=[2**62, 2**62]))
    shift = {"data_offsets": [header["fc.weight_packed"]["data_offsets"][i] + 4 for i in (0, 1)]}
    change("R06_hole", lambda h, _: h["fc.weight_packed"].update(shift), more=b"\0\0\0\0")
    overlap = header["fc.bias"]["data_offsets"]
    change(
        "R06_overlap",
        lambda h, _: h["fc.weight_scale"].update(data_offsets=[overlap[0], overlap[0] + 4]),
    )
    change("R06_truncated", lambda *_: None, cut=1)
    change("R06_trailing", lambda *_: None, more=b"\0")
    files["R07_metadata_list"] = raw(canonical(header | {"__metadata__": []}), data)
    files["R07_metadata_number"] = raw(
        canonical(header | {"__metadata__": {"format": "pt", "tpack": 1}}), data
    )
    files["R07_no_description"] = raw(canonical(header | {"__metadata__": {"format": "pt"}}), data)
    files["R07_no_metadata"] = raw(
        canonical({k: v for k, v in header.items() if k != "__metadata__"}), data
    )
    change("R07_format_missing", lambda h, _: h["__metadata__"].pop("format"))
    change("R07_format_other", lambda h, _: h["__metadata__"].update(format="tf"))
    inner = canonical(description)
    for name, value in {
        "R08_not_json": inner[:-1],
        "R08_duplicate_key": inner[:-1] + ',"version":1}',
        "R08_infinity": inner.replace("0.0", "Infinity", 1),
        "R08_lone_surrogate": inner.replace('"aliases":{}', '"aliases":{"\\ud800":"fc.bias"}'),
        "R10_not_object": "[]",
    }.items():
        meta = {"__metadata__": header["__metadata__"] | {"tpack": value}}
        files[name] = raw(canonical(header | meta), data)
    change("R09_version_2", lambda _, d: d.update(version=2))
    change("R09_version_text", lambda _, d: d.update(version="1"))
    change("R09_version_bool", lambda _, d: d.update(version=True))
    change("R09_version_2_1", lambda _, d: d.update(version=[2, 1]))
    change("R09_version_1_0", lambda _, d: d.update(version=[1, 0]))
    change("R09_version_three", lambda _, d: d.update(version=[1, 1, 1]))
    change("R09_version_minor_bool", lambda _, d: d.update(version=[1, True]))

    def newer(name: str, edit: Callable[[dict[str, Any]], Any]) -> None:
        change(f"R09_newer_{name}", lambda _, d: (d.update(version=[1, 7]), edit(d)))

    # what a file of this version is refused for by R10 or R13
    newer("field", lambda d: d.update(license="MIT"))
    for field, row in {"layout": "t9", "method": "magic", "scale": "block:8"}.items():
        newer(field, lambda d, new={field: row}: d["tensors"]["fc.weight"].update(new))
    newer("field_of_a_tensor", lambda d: d["tensors"]["fc.weight"].update(offset=1))
    newer("layer", lambda d: layers(d)[-1]["params"][0].update(layer="TernaryTree"))
    newer("op", lambda d: layers(d)[-1].update(body=[{"node": "Return", "value": call}]))
    newer("node", lambda d: layers(d)[-1].update(body=[{"node": "While"}]))
    change("R10_no_version", lambda _, d: d.pop("version"))
    change("R10_no_digest", lambda _, d: d.pop("sha256"))
    change("R10_surplus_field", lambda _, d: d.update(date="today"))
    change("R10_kept_list", lambda _, d: d.update(kept=["fc.bias"]))
    change("R10_kept_number", lambda _, d: d["kept"].update({"fc.bias": 1}))
    change("R10_digest_short", lambda _, d: d["kept"].update({"fc.bias": "00"}))
    change("R10_digest_upper", lambda _, d: d["kept"].update({"fc.bias": "A" * 64}))
    for field, bad in {
        "shape": [0, 5],
        "split": 2,
        "layout": "t3",
        "method": "magic",
        "source_dtype": "float8_e4m3fn",
        "relative_error": -1.0,
        "sha256": "x" * 64,
        "scale_sha256": 5,
        "scale": "group:0",
    }.items():
        change(
            f"R10_{field}",
            lambda _, d, field=field, bad=bad: d["tensors"]["fc.weight"].update({field: bad}),
        )
    change("R10_no_error", lambda _, d: d["tensors"]["fc.weight"].update(relative_error=None))
    change("R10_unknown_error", lambda _, d: d["tensors"]["fc.weight"].update(method="unknown"))
    change("R10_divisor_zero", lambda _, d: d["tensors"]["fc.weight"].update(divisor=0))
    change("R10_divisor_text", lambda _, d: d["tensors"]["fc.weight"].update(divisor="2"))
    change("R10_shard_number", lambda _, d: d.update(shard=shard(number=3)))
    change("R10_shard_bool", lambda _, d: d.update(shard=shard(of=True)))
    change("R10_shard_digest", lambda _, d: d.update(shard=shard(program_sha256="0")))
    change("R10_shard_field", lambda _, d: d.update(shard=shard(name="x")))
    change("R10_metadata_digest", lambda _, d: d.update(metadata={"gguf": "00"}))
    change("R10_entry_field_missing", lambda _, d: d["tensors"]["fc.weight"].pop("split"))
    change("R10_shape_product", lambda _, d: d["tensors"]["fc.weight"].update(shape=[2**40] * 3))
    change("R11_packed_dtype", lambda h, _: h["fc.weight_packed"].update(dtype="I8"))
    change("R11_packed_length", lambda _, d: d["tensors"]["fc.weight"].update(shape=[3, 9]))
    change("R11_scale_shape", lambda h, _: h["fc.weight_scale"].update(shape=[1, 1]))
    change("R11_scale_column", lambda _, d: d["tensors"]["fc.weight"].update(scale="column"))
    change("R11_scale_dtype", lambda h, _: h["fc.weight_scale"].update(dtype="I32"))
    change("R11_split", lambda _, d: d["tensors"]["fc.weight"].update(split=0))
    change(
        "R12_missing",
        lambda _, d: d["kept"].update({"gone": "0" * 64}),
    )
    change("R12_not_described", lambda _, d: d["kept"].pop("fc.bias"))
    change("R12_twice", lambda _, d: d["kept"].update({"fc.weight_scale": "0" * 64}))
    change("R12_alias_nowhere", lambda _, d: d["aliases"].update(head="gone"))
    change("R12_alias_clashes", lambda _, d: d["aliases"].update({"fc.bias": "fc.weight"}))
    change("R12_alias_of_packed", lambda _, d: d["aliases"].update(head="fc.weight_packed"))

    two = deepcopy(header)
    two["extra"] = {"dtype": "U8", "shape": [1], "data_offsets": [len(data), len(data) + 1]}
    described = deepcopy(description)
    described["kept"]["extra"] = "0" * 64
    files["R13_in_no_layerdef"] = build(two, described, data + b"\0")
    child = {"name": "more", "param_type": "Tensor", "shape": [2]}
    change("R13_not_stored", lambda _, d: layers(d)[-1]["params"].append(child))
    files["R19_shard_alone"] = build(header, description | {"shard": shard(of=1)}, data)
    files["R19_shard_missing"] = build(header, description | {"shard": shard()}, data)
    change("R13_root_unknown", lambda _, d: d["program"].update(root="Other"))
    change("R13_program_list", lambda _, d: d.update(program=[]))
    change("R13_injected_name", lambda _, d: layers(d)[-1].update(name="M\nimport os"))
    change("R13_keyword", lambda _, d: layers(d)[-1]["params"][0].update(name="class"))
    change(
        "R13_unknown_op",
        lambda _, d: layers(d)[-1].update(body=[{"node": "Return", "value": call}]),
    )
    return files


def rejected_folders() -> dict[str, dict[str, bytes]]:
    """The refused folders by name, each as its files."""
    weights = {"a.weight": trits(2, 4), "b.weight": trits(2, 4)}
    own, other = (shards({k: sign * w for k, w in weights.items()}) for sign in (1, -1))
    name = "model-00002-of-00002.safetensors"
    return {"R20_shard_of_another_model": own | {name: other[name]}}


def shards(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """The shards and the index of a packed folder, a tensor in each shard."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        homes = {
            name: f"model-{i:05}-of-{len(state):05}.safetensors" for i, name in enumerate(state, 1)
        }
        for name, home in homes.items():
            save_file({name: state[name]}, source / home)
        (source / INDEX).write_text(json.dumps({"weight_map": homes}))
        convert(source, target)
        return {path.name: path.read_bytes() for path in target.glob("model*")}


def main() -> None:
    """Write both folders again."""
    for folder in (ACCEPT, REJECT):
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.safetensors"):
            old.unlink()
    for name in checkpoints():
        (ACCEPT / f"{name}.safetensors").write_bytes(accepted(name))
    for name, blob in others().items():
        (ACCEPT / f"{name}.safetensors").write_bytes(blob)
    for name, blob in rejected().items():
        (REJECT / f"{name}.safetensors").write_bytes(blob)
    for name, files in rejected_folders().items():
        (REJECT / name).mkdir(exist_ok=True)
        for file, blob in files.items():
            (REJECT / name / file).write_bytes(blob)


if __name__ == "__main__":
    main()
