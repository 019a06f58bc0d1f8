"""How other systems store a packed weight, a row for each.

The names are those that the systems write: some were seen in their output, others read in their
code or written from memory. ``tests/sources/test_packed_layouts.py`` has an example of each, and
says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tpack.choices import MEANINGS
from tpack.wording import spell


@dataclass(frozen=True)
class Layout:
    """How a system stores a packed weight.

    Attributes:
        system: the name of the system.
        codes: how the name of the codes ends; a root's tensor counts as ``.weight``.
        dtypes: of the codes.
        beside: endings in place of ``codes``; at least one such tensor must lie beside the codes.
            All tensors with these endings belong to the weight. None: the dtype tells enough.
        advice: what to do; a function if that is an option, which callers spell differently.
        of: dtypes of the first tensor beside, where only they distinguish systems.
    """

    system: str
    codes: str
    dtypes: tuple[str, ...]
    beside: tuple[str, ...]
    advice: str | Callable[[], str] = "Convert the unquantized model."
    of: tuple[str, ...] = ()


def _config(key: str) -> str:
    return (
        f"No config.json beside it says how, under {key!r}: put that of the model there, or "
        "convert the unquantized model."
    )


OURS = "tpack"
_MODULE = (
    "A state dict does not record the shape and the layout of packed weights: give the module "
    "itself, tpack.convert(module, path) or tpack.save(module, path)."
)


def _scale_means() -> str:
    return (
        "Its scale may multiply or divide: put the config.json of the model beside the file, or "
        f"say which with {spell(scale_means=tuple(MEANINGS))}, or convert the unquantized model."
    )


BITNET = "Hugging Face's bitnet"
#: Systems whose int8 weights are plain: not permuted, and not packed further.
PLAIN_BYTES = ("EETQ",)
_BYTES = ("uint8", "int8")
_ANY = ("uint8", "int8", "int16", "int32", "uint32", "int64")
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_FLOATS = ("float32", "float16", "bfloat16")
_MODELOPT = (
    ".weight_quantizer._scale",
    ".weight_quantizer.0._scale",
    ".weight_quantizer._double_scale",
    ".weight_quantizer._amax",
    ".weight_quantizer.0._amax",
    ".weight_quantizer.1._amax",
    ".weight_scale_2",
)

#: Every layout that is known; the first that fits names the system.
LAYOUTS = (
    Layout("MLX", ".weight", ("uint32",), (".scales", ".biases"), _config("quantization")),
    Layout("ModelOpt", ".weight", (*_BYTES, *_FLOAT8), _MODELOPT),
    Layout(
        "bitsandbytes",
        ".weight",
        (*_BYTES, "bfloat16", "float16", "float32"),  # of 4-bit weights in quant_storage
        (".weight.absmax", ".weight.quant_map", ".SCB", ".weight.SCB", ".weight_format"),
    ),
    Layout(
        BITNET, ".weight", ("uint8",), (".weight_scale",), _scale_means, _FLOATS
    ),
    Layout("FP8", "", _FLOAT8, ("_scale", "_scale_inv", "_scales")),
    Layout("FP8", ".weight", _FLOAT8, (".scale", ".scales", ".scale_weight", ".scale_inv")),
    Layout("MXFP4 or NVFP4", "", ("float4_e2m1fn",), ()),
    Layout("MXFP6", "", ("float6_e2m3fn", "float6_e3m2fn"), ()),
    Layout(
        "compressed-tensors",
        ".weight_packed",
        ("uint8",),
        (".weight_scale", ".weight_global_scale"),
        of=("uint8", *_FLOAT8, "float8_e8m0fnu"),
    ),
    Layout(
        "compressed-tensors",
        ".weight_packed",
        ("int32", "int64"),
        (".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".meta"),
        _config("quantization_config"),
    ),
    Layout("compressed-tensors", ".bitmask", ("uint8",), (".compressed", ".row_offsets", ".shape")),
    Layout(OURS, "_packed", ("uint8",), ("_scale",), _MODULE),
    Layout("nunchaku", ".qweight", ("int8", "int32"), (
        ".wscales", ".smooth_factor", ".smooth_factor_orig", ".proj_down", ".proj_up", ".wtscale",
        ".wcscales", ".wzeros", ".lora_down", ".lora_up", ".smooth", ".smooth_orig",
    )),
    Layout("ParoQuant", ".qweight", ("int32",), (".theta", ".pairs", ".channel_scales")),
    Layout("SqueezeLLM", ".qweight", ("int32",), (".lookup_table", ".rows", ".cols", ".vals")),
    Layout("BitBLAS", ".qweight", _BYTES, (".scales", ".zeros", ".qzeros")),
    Layout(
        "GPTQ or AWQ", "qweight", ("int32", "int16", "uint32"), ("qzeros", "scales", "g_idx")
    ),
    Layout("Marlin", ".B", ("int32",), (".s", ".workspace", ".meta")),
    Layout("MXFP4", "_blocks", ("uint8",), ("_scales",)),
    Layout("gemlite", ".W_q", _ANY, (".metadata", ".orig_shape", ".meta_scale")),
    Layout("HQQ", ".W_q", _ANY, (".scale", ".zero", ".meta", ".nbits", ".packing")),
    Layout("quanto", ".weight._data._data", _BYTES, (".weight._scale", ".weight._shift")),
    Layout("quanto", ".weight._data", (*_BYTES, *_FLOAT8), (".weight._scale", ".weight._shift")),
    Layout("torchao", "_qdata", (*_ANY, *_FLOAT8), (
        "_scale", "_zero_point", "_scale_and_zero", "_per_tensor_scale", "_act_pre_scale",
    )),
    Layout("EETQ", ".weight", ("int8",), (".weight_scales",)),
    Layout("AQLM", ".codes", _ANY, (".codebooks", ".scales")),
    Layout("VPTQ", ".indices", ("int16", "int32", "uint16"), (
        ".centroids.weight", ".res_centroids.weight", ".res_indices", ".perm", ".weight_scale",
        ".weight_bias", ".outlier_indices", ".outlier_centroids.weight",
    )),
    Layout("SpQR", ".dense_weights", ("int64",), (".row_offsets", ".col_vals", ".in_perm")),
    Layout("QuIP", ".Qidxs", _ANY, (
        ".SU", ".SV", ".codebook_id", ".Wscale", ".A", ".B", ".fuse_scales", ".grid_packed_abs",
    )),
    Layout("ExLlamaV2", ".q_weight", ("int32",), (
        ".q_scale", ".q_scale_max", ".q_groups", ".q_group_map", ".q_perm", ".q_invperm",
    )),
    Layout("ExLlamaV3", ".trellis", ("int16", "uint16"), (
        ".suh", ".svh", ".su", ".sv", ".mcg", ".mul1", ".mcg_multiplier", ".mul1_multiplier",
    )),
    Layout("FLUTE or HIGGS", ".weight", ("int16",), (".scales", ".tables", ".tables2")),
)  # fmt: skip
