"""The classes that transformers calls: config and quantizer of a packed folder."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tpack.architectures.names import applied
from tpack.container import Checkpoint, Document, Origin, checkpoint_files
from tpack.errors import InputError, UsageError, locate
from tpack.hf.replacement import place
from tpack.hf.saving import save_pretrained
from tpack.hfconfig import METHOD
from tpack.nn.code_check import remember
from tpack.wording import spell_call


class TpackConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a packed folder.

    Args:
        activations: ``int8`` if linear layers round their inputs, else ``float``.
        replaced: the keys of the plain model's config that packing replaced.
    """

    def __init__(
        self,
        activations: str = "float",
        replaced: dict[str, Any] | None = None,
        quant_method: str = METHOD,
        **others: Any,
    ) -> None:
        if others or not isinstance(replaced or {}, dict):
            raise InputError(
                f"config.json has {others or replaced!r:.60} in its quantization_config, expected "
                "an object in the field 'replaced', and no unknown field. Use a newer tpack, or "
                "convert the model again."
            )
        if quant_method != METHOD or activations not in ("int8", "float"):
            raise InputError(
                f"config.json says quant_method {quant_method!r:.40} and activations "
                f"{activations!r:.40}, expected {METHOD!r}, and 'int8' or 'float'. Use a newer "
                "tpack."
            )
        self.quant_method = METHOD
        self.activations = activations
        self.replaced = replaced or {}


class TpackQuantizer(HfQuantizer):
    """Loads and saves packed folders."""

    quantization_config: TpackConfig

    def __init__(self, quantization_config: TpackConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise UsageError(
                "the model is not packed, and from_pretrained does not pack it. Convert its folder "
                f"first: {spell_call('convert')}."
            )
        #: The description of the checkpoint that was loaded.
        self.document: Document | None = None
        #: The entries of its weights in that checkpoint.
        self.origin = Origin()
        #: The folder and the name there of the bytes of each packed weight, by the name here.
        self._origins: dict[str, tuple[str, str]] = {}
        #: The patterns of the conversions that would merge what is packed.
        self._dropped: Collection[str] = ()
        #: Whether tpack's ``save_pretrained`` is running.
        self.saving = False

    def update_attn_implementation(self, config: Any) -> Any:
        """Drop the key that makes a transformers without this quantizer refuse the folder."""
        if hasattr(config, "transformers_weights"):
            del config.transformers_weights
        return config

    # older versions of transformers 5 call these instead, also before they look for files
    update_tp_plan = update_attn_implementation
    update_ep_plan = update_attn_implementation

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Replace the layers whose weights are packed in the files."""
        paths = [Path(path) for path in kwargs.get("checkpoint_files") or ()]
        if not paths:
            raise UsageError("from_pretrained needs the folder of a packed model.")
        _check_inside(paths, Path(model.config.name_or_path))
        folder = paths[0].parent
        _check_chosen(paths, folder)
        if all(is_packed(path) is False for path in paths):
            raise InputError(
                "holds plain weights, but its config.json says that they are packed. Take "
                "quantization_config and transformers_weights out of it: the config of a packed "
                "model was saved with another model.",
                file=folder,
            )
        with Checkpoint(folder) as file:
            placed = place(model, file, self.quantization_config.to_dict())
            self._dropped = placed.dropped
            self._origins = {
                f"{ours}_packed": (str(folder), f"{name}_packed")
                for ours, name in placed.sources.items()
            }
            self.document, self.origin = file.document, Origin.of(file)
            # by the names here, for a capture of the model; plain data, no part of the state
            model._tpack_origin = Origin(  # noqa: SLF001
                {ours: self.origin.tensors[name] for ours, name in placed.sources.items()},
                {ours: self.origin.dtypes[name] for ours, name in placed.sources.items()},
            )

    def update_weight_conversions(self, weight_conversions: Any, model: PreTrainedModel) -> Any:
        """Leave out the conversions that would merge experts: the model has each on its own."""
        return applied(super().update_weight_conversions(weight_conversions, model), self._dropped)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        for name, origin in self._origins.items():
            remember(model.get_buffer(name), *origin)
        # a partial, not a bound method, survives copies and pickles of the model
        model.save_pretrained = partial(save_pretrained, model)

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> Any:  # noqa: ARG002
        """Return nothing to write, since transformers would lose the description of the weights.

        Raises:
            UsageError: the caller is not the ``save_pretrained`` of tpack.
        """
        if not self.saving:
            raise UsageError("a packed model is saved by its own method: model.save_pretrained.")
        return {}, {}

    def _dequantize(self, model: PreTrainedModel, dtype: Any = None) -> NoReturn:  # noqa: ARG002
        raise UsageError(
            "a packed model has no float weights to go back to. Unpack its folder: tpack unpack."
        )

    def is_serializable(self) -> bool:
        """Return that packed models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model can be trained: all but the trits has gradients."""
        return True


def is_packed(path: str | Path) -> bool | None:
    """Return whether a safetensors file has a description of tpack; None if it cannot be read."""
    try:
        with safe_open(path, "np") as file:
            return "tpack" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return None


def _check_chosen(paths: list[Path], folder: Path) -> None:
    """Check that transformers found the files that ``tpack verify`` looks at, and no others.

    Raises:
        InputError: it found others, or there is more than one choice; with the folder.
    """
    with locate(file=folder):
        _, files = checkpoint_files(folder)
        if others := sorted(set(paths) ^ set(files)):
            raise InputError(
                f"holds a checkpoint in {files[0].name}, but transformers would load "
                f"{paths[0].name}; they differ in {others[0].name}. Leave out variant=, "
                "use_safetensors= and gguf_file=, and remove what is old."
            )


def _check_inside(paths: list[Path], folder: Path) -> None:
    """Check that an index names files beside it: transformers opens any file that it names.

    Raises:
        InputError: a file is elsewhere; with its path.
    """
    for path in paths:
        beside = path.parent == paths[0].parent
        if beside and folder.is_dir():  # not a folder: the name of a repository
            beside = path.is_relative_to(folder) and ".." not in path.relative_to(folder).parts
        if not beside:
            raise InputError(
                f"names the file {str(path)!r:.200}, expected files beside it. The index is "
                "damaged, or hostile.",
                file=folder,
            )
