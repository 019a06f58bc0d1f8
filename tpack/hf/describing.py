"""Describe a packed model as it is now, by its modules and the checkpoint it was loaded from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from tpack.checkpoint import stored_tensor, stored_weight
from tpack.codec import Scale
from tpack.container import Document, Origin
from tpack.describing import Description, Stored, describe
from tpack.errors import LayerDefError, UnsupportedError, UsageError
from tpack.nn import BitLinear, PackedModule
from tpack.wording import spell_call


def describe_model(
    model: PreTrainedModel,
    state: Mapping[str, Tensor],
    document: Document | None,
    origin: Origin,
) -> Description:
    """Describe a packed model.

    Args:
        state: its tensors, under the names that they have in transformers.
        document: the description of the checkpoint that it was loaded from, if there is one.
        origin: the entries of its weights in that checkpoint.

    Raises:
        UsageError: ``state`` lacks a tensor of the model; a weight is unfrozen.
        InputError: a scale is not finite.
        UnsupportedError: a packed layer was replaced by a float layer.
        NotTernaryError: a packed byte holds no valid codes.
    """
    old = document or Document(None, {}, {})
    unsaved = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}  # noqa: SLF001
    own = {name: tensor.detach() for name, tensor in state.items() if name not in unsaved}
    _check_whole(model, own, unsaved)
    tensors: dict[str, Tensor] = revert_weight_conversion(model, own)
    names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    trained = _trained(model, own)
    stored: dict[str, Stored] = {}
    weights: dict[str, str] = {}
    int8_inputs = set()
    for path, module in model.named_modules():
        for weight in module.ternary_shapes if isinstance(module, PackedModule) else ():
            packed = own[f"{path}.{weight}_packed"]
            name = names[packed.data_ptr()].removesuffix("_packed")
            weights |= {f"{name}_packed": name, f"{name}_scale": name}
            stored[name] = _stored(name, module, weight, packed, own[f"{path}.{weight}_scale"])
            if isinstance(module, BitLinear):
                int8_inputs.add(name)
    for name, tensor in tensors.items():
        if name in old.tensors:
            raise UnsupportedError(
                "was packed when the model was loaded, and is floats now. Put a layer of tpack.nn "
                f"in its place, or save the plain weights and pack them: {spell_call('convert')}.",
                tensor=name,
            )
        if name not in weights:
            stored[name] = stored_tensor(name, tensor, trained=trained.get(tensor.data_ptr()))
    order = dict.fromkeys(weights.get(name, name) for name in tensors)
    ordered = [stored[name] for name in order]
    try:
        return describe(
            ordered, old.program, origin=origin, aliases=old.aliases, int8_inputs=int8_inputs
        )
    except LayerDefError:  # the names have changed: perhaps it was loaded as another class
        return describe(ordered, origin=origin, aliases=old.aliases, int8_inputs=int8_inputs)


def _stored(name: str, module: PackedModule, weight: str, packed: Tensor, scale: Tensor) -> Stored:
    """Return a packed weight of a module, to be stored."""
    shape, split = module.ternary_shapes[weight], packed.dim() - 1
    granularity = Scale.of(scale.shape, shape, split, module.ternary_groups[weight])
    layout = module.ternary_layouts[weight]
    return stored_weight(name, shape, split, layout, granularity, packed, scale)


def _trained(model: PreTrainedModel, own: Mapping[str, Tensor]) -> dict[int, bool]:
    """Return whether each tensor of a model is a parameter, by its address in memory."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {tensor.data_ptr(): name in parameters for name, tensor in own.items()}


def _check_whole(model: PreTrainedModel, own: Mapping[str, Tensor], unsaved: set[str]) -> None:
    """Check that all tensors of a model are there to be saved, and all its weights packed."""
    for path, module in model.named_modules():
        for weight in module.ternary_shapes if isinstance(module, PackedModule) else ():
            if f"{weight}_packed" not in module._buffers:  # noqa: SLF001
                raise UsageError(
                    "is unfrozen, expected packed weights. Pack them first: "
                    "tpack.nn.freeze(model).",
                    tensor=f"{path}.{weight}",
                )
    for name in model.state_dict():
        if name not in own and name not in unsaved:
            raise UsageError(
                "is missing in the state_dict to be saved, expected all tensors of the model.",
                tensor=name,
            )
