"""From the content of a config.json to the config and the classes of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from tpack.errors import LayerDefError

#: Keys that name code or files, or ways of computing that need other packages.
_LEFT_OUT = (
    "attn_implementation",
    "_attn_implementation",
    "auto_map",
    "base_model_tp_plan",
    "distributed_config",
    "experts_implementation",
    "_experts_implementation",
    "fusion_config",
    "kernel_config",
    "quantization_config",
    "transformers_weights",
    "use_kernels",
)
#: Keys that make a model return more than its result.
_MORE = ("output_attentions", "output_hidden_states", "output_router_logits", "torchscript")
_NESTING = 8


def config_of(data: Mapping[str, Any]) -> PreTrainedConfig:
    """Make the config of transformers from the content of a config.json.

    Raises:
        LayerDefError: transformers does not have the ``model_type``, or not itself.
    """
    found = data.get("model_type")
    if not isinstance(found, str) or found not in CONFIG_MAPPING:
        raise LayerDefError(
            f"transformers {transformers.__version__} has no architecture {str(found)!r:.60}."
        )
    kind = CONFIG_MAPPING[found]
    if not _is_own(kind):
        raise LayerDefError(f"the architecture {found!r:.60} is not one of transformers itself.")
    config: PreTrainedConfig = kind.from_dict(_plain(data))
    return config


def classes_of(
    data: Mapping[str, Any], config: PreTrainedConfig
) -> Iterator[type[PreTrainedModel]]:
    """Yield the classes that the folder may be of: those that it names, then the base model.

    Raises:
        LayerDefError: there is none.
    """
    names = data.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    named = [_named(name, config) for name in names[:4]]
    if not names:
        named = [MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)]
    base = MODEL_MAPPING.get(type(config), None)
    others = base if isinstance(base, tuple) else (base,)
    found = [one for one in dict.fromkeys((*named, *others)) if one is not None and _is_own(one)]
    if not found or (names and named[0] is None):
        what = f"class {names[0]!r:.60}" if names else "model"
        raise LayerDefError(
            f"transformers {transformers.__version__} has no {what} for the model_type "
            f"{config.model_type!r}."
        )
    yield from found


def _named(name: str, config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(kind, type) or not issubclass(kind, PreTrainedModel) or not _is_own(kind):
        return None
    wanted = getattr(kind, "config_class", None)
    return kind if wanted is not None and isinstance(config, wanted) else None


def _is_own(kind: type) -> bool:
    """Return whether a class is defined in transformers: others can be registered there."""
    return kind.__module__.startswith("transformers.")


def _plain(data: Any, depth: int = 0) -> Any:
    """Return JSON data without the keys that name code, at any depth."""
    if depth > _NESTING:
        return data
    if isinstance(data, Mapping):
        left = {key: one for key, one in data.items() if key not in (*_LEFT_OUT, *_MORE)}
        return {key: _plain(one, depth + 1) for key, one in left.items()}
    return [_plain(one, depth + 1) for one in data] if isinstance(data, list) else data
