"""Capture the model of a folder of transformers, whose config says what it computes.

Which weights are packed, and their bytes, do not depend on it: only the LayerDefs do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tpack.container import Piece
from tpack.conversion.captures import packed_note
from tpack.conversion.plan import Plan
from tpack.describing import Description, Stored
from tpack.dtypes import BY_NAME, KEEP_DTYPES
from tpack.errors import LayerDefError, TpackError
from tpack.hfconfig import read_config
from tpack.layerdef import Program
from tpack.options import Options
from tpack.sources import PackedTensor, Source
from tpack.wording import spell

if TYPE_CHECKING:
    import torch

    from tpack.capturing import Captured


def may_capture(source: Source, options: Options) -> bool:
    """Return whether the model of a source is to be captured, and transformers is there for it."""
    wanted = options.capture and _config(source) is not None
    return wanted and find_spec("transformers") is not None


def of_architecture(
    source: Source,
    plan: Plan,
    options: Options,
    stored: Mapping[str, Stored],
    describe: Callable[[Program], Description],
    notes: list[str],
) -> Description | None:
    """Describe an output by the model that its config names; None if it cannot be captured.

    Args:
        stored: the tensors of the output.
        describe: makes a description with LayerDefs.
        notes: gets a note: what was captured, or why nothing was.
    """
    config = _config(source) if options.capture else None
    if config is None:
        return None
    try:
        if find_spec("transformers") is None:
            raise LayerDefError(
                "transformers is not installed, which has the code of the model. Install it: "
                'pip install "tpack-ternary[hf]".'
            )
        trace = _traced(config, source, plan, options, stored)
        packed = [name for name, one in stored.items() if one.entry is not None]
        found = trace.compare()
        description = describe(trace.program(packed))
        more = packed_note(trace, description)
    except TpackError as error:
        notes.append(
            f"what the model computes is not captured: {error} Its layers are described by the "
            f"names of its tensors, as with {spell(capture=False)}"
        )
        return None
    notes += [*trace.notes, found, *more]
    return description


def _config(source: Source) -> Mapping[str, Any] | None:
    """Return the config of a model of transformers, that of the folder or beside the file."""
    if source.graph is not None or "gguf" in source.metadata:
        return None
    config = source.config
    if config is None and source.path is not None and source.path.is_file():
        try:
            config = read_config(source.path.parent)
        except TpackError:  # of something else that lies there
            return None
    return config if config and "model_type" in config else None


def _traced(
    config: Mapping[str, Any],
    source: Source,
    plan: Plan,
    options: Options,
    stored: Mapping[str, Stored],
) -> Captured:
    try:
        from tpack.architectures import Weights, trace_architecture
    except ImportError as error:
        raise LayerDefError(
            "transformers 5 or newer is needed, which has the code of the model. Install it: "
            'pip install "tpack-ternary[hf]".'
        ) from error
    tensors = {name: (one.shape, _dtype(one, options)) for name, one in stored.items()}
    aliases = {alias: name for alias, name in source.aliases.items() if name in stored}
    return trace_architecture(
        config, Weights(tensors, aliases, partial(_values, source, plan, tensors))
    )


def _dtype(one: Stored, options: Options) -> torch.dtype:
    """Return the dtype of a tensor in its model: a packed weight has that of its source."""
    import torch

    name = one.dtype if one.entry is None else one.entry.source_dtype
    if one.entry is not None and options.keep_dtype is not None:
        name = KEEP_DTYPES[options.keep_dtype].name
    found = getattr(torch, BY_NAME[name].held)
    assert isinstance(found, torch.dtype)
    return found


def _values(source: Source, plan: Plan, tensors: Mapping[str, Any], name: str) -> torch.Tensor:
    """Read a tensor of the source, as the output has it if it is kept."""
    import torch

    from tpack.capturing.comparison import tensor_of

    shape, dtype = tensors[name]
    tensor = plan.weights[name][0] if name in plan.weights else plan.kept.get(name)
    if tensor is None:
        tensor = source.tensors[name]
    plain = tensor.dense() if isinstance(tensor, PackedTensor) else tensor
    if plain.factor is not None:
        split = plan.weights[name][1] if name in plan.weights else 1
        found = torch.from_numpy(plain.weight(split).load(0, plain.numel)).reshape(shape)
    else:
        found = tensor_of(Piece(name, plain.dtype, plain.shape, plain.chunks))
    return found.to(dtype)
