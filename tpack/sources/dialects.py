"""The dialects in which others store ternary weights: a row each, and which one a source is in.

A dialect takes the tensors of a whole folder, so that a scale may lie in another shard than
its weight, and gives back those of the plain model. A new dialect is a module and a row here;
where its tensors alone show what they are, ``packed_systems`` has a row for them.
"""

from __future__ import annotations

from tpack.errors import UnsupportedError
from tpack.hfconfig import quant_method
from tpack.sources import compressed_tensors, hf_bitnet, mlx
from tpack.sources.adapting import Config, Dialect, Plain, Tensors
from tpack.sources.packed_layouts import packed_groups

#: Every dialect that is read, in the order in which a source is held against them.
DIALECTS = {
    row.name: row
    for row in (
        Dialect(
            "Hugging Face bitnet",
            "quant_method bitnet",
            ("uint8",),
            lambda _, config: quant_method(config) == "bitnet",
            hf_bitnet.adapt,
        ),
        Dialect(
            "compressed-tensors",
            "quant_method compressed-tensors",
            ("int32",),
            lambda _, config: quant_method(config) == "compressed-tensors",
            compressed_tensors.adapt,
        ),
        Dialect("MLX", "quantization", ("uint32",), mlx.recognises, mlx.adapt),
    )
}


def may_be_packed(tensors: Tensors) -> bool:
    """Return whether a tensor of a single file may hold the codes of a dialect, by its dtype."""
    codes = {dtype for row in DIALECTS.values() for dtype in row.codes}
    return any(t.dtype in codes and len(t.shape) >= 2 for t in tensors.values())


def adapt(tensors: Plain, config: Config | None) -> tuple[Tensors, list[str]]:
    """Recognise the dialect of a folder and read it.

    Args:
        tensors: of the whole folder, as stored.
        config: the content of config.json, if there is one.

    Returns:
        The tensors of the plain model, and notes for the report.

    Raises:
        UnsupportedError: a quantization of which the tensors show nothing, or of an unknown
            convention.
        InputError: weights that do not fit the dialect.
    """
    config = config or {}
    for row in DIALECTS.values():
        if row.recognises(tensors, config):
            return row.adapt(tensors, config)
    method = quant_method(config)
    if method == "":
        return tensors, []
    if packed_groups(tensors):  # each is refused by name, or kept
        return tensors, [f"config.json says that weights are quantized by {method!r:.40}"]
    known = [f"{row.name} ({row.found_by})" for row in DIALECTS.values()]
    raise UnsupportedError(
        f"is quantized by {method!r:.40} as its config.json says, expected "
        f"{', '.join(known[:-1])} or {known[-1]}. Dequantize it first."
    )
