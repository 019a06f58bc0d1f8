"""The variables of Keras's layers: a file has their numbers, not their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any


@dataclass(frozen=True)
class Variable:
    """A variable of a layer.

    Attributes:
        name: the attribute of the layer.
        role: as ``Source.roles`` has it; why it is kept, if it is no weight.
        only_with: keys of the layer's config; there is no such variable where one is false.
        column_dims: how many trailing dims are its columns; 0 where the layer's equation tells.
    """

    name: str
    role: str = "layer"
    only_with: tuple[str, ...] = ()
    column_dims: int = 1


_KERNEL = Variable("kernel")
_BIAS = Variable("bias", "bias", ("use_bias",))
_GAMMA = Variable("gamma", "norm", ("scale",))
_BETA = Variable("beta", "norm", ("center",))
_DEPTHWISE = Variable("kernel", "depthwise", (), 2)
_EMBEDDINGS = Variable("embeddings", "embedding")
_LINEAR = (_KERNEL, _BIAS)
_SEPARABLE = (
    Variable("depthwise_kernel", "depthwise", (), 2), Variable("pointwise_kernel"), _BIAS
)  # fmt: skip
_RECURRENT = (_KERNEL, Variable("recurrent_kernel"), _BIAS)

#: By the class of a layer, in snake case, as files name groups; in the order of the file.
VARIABLES: dict[str, tuple[Variable, ...]] = {
    "dense": _LINEAR,
    "einsum_dense": (Variable("kernel", column_dims=0), Variable("bias", "bias", ("bias_axes",))),
    "attention_inputs": (Variable("kernel", column_dims=2), _BIAS),  # (inputs, heads, size)
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _LINEAR),
    **dict.fromkeys(("conv1d_transpose", "conv2d_transpose", "conv3d_transpose"), _LINEAR),
    **dict.fromkeys(("depthwise_conv1d", "depthwise_conv2d"), (_DEPTHWISE, _BIAS)),
    **dict.fromkeys(("separable_conv1d", "separable_conv2d"), _SEPARABLE),
    "embedding": (_EMBEDDINGS,),
    "reversible_embedding": (
        _EMBEDDINGS, Variable("reverse_embeddings", "output head", ("!tie_weights",))
    ),
    "batch_normalization": (
        _GAMMA, _BETA, Variable("moving_mean", "norm"), Variable("moving_variance", "norm")
    ),
    **dict.fromkeys(("layer_normalization", "group_normalization"), (_GAMMA, _BETA)),
    "rms_normalization": (Variable("scale", "norm"),),
    "normalization": tuple(Variable(name, "norm") for name in ("mean", "variance", "count")),
    "p_re_lu": (Variable("alpha", "activation"),),
    **dict.fromkeys(("lstm_cell", "gru_cell", "simple_rnn_cell", "conv_lstm_cell"), _RECURRENT),
    "spectral_normalization": (Variable("vector_u", "norm"),),
    "seed_generator": (Variable("state", "state of a random generator"),),
}  # fmt: skip

#: What layers that compute in float8 have beside their variables.
_FLOAT8 = tuple(
    Variable(f"float8_{name}", "scale")
    for name in (
        *("inputs_scale", "inputs_amax_history", "kernel_scale", "kernel_amax_history"),
        *("outputs_grad_scale", "outputs_grad_amax_history"),
    )
)
#: How Keras quantizes layers; the variables of the first two are known.
MODES = ("int8", "int4", "float8", "gptq", "awq")


def snake_case(name: str) -> str:
    """Return the name of a class as files call groups.

    Example:
        >>> snake_case("BatchNormalization"), snake_case("Conv2DTranspose")
        ('batch_normalization', 'conv2d_transpose')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a part of a config, empty if it is none."""
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class Layer:
    """What is known of the layer that a group of a file belongs to.

    Attributes:
        kind: its class in snake case, as ``VARIABLES`` has it; empty if Keras has none such.
        config: its config; None if the file has none.
    """

    kind: str = ""
    config: Mapping[str, Any] | None = None

    @cached_property
    def layers(self) -> tuple[dict[str, tuple[str, Any]], dict[str, tuple[str, Any]]]:
        """The layers that the config of a model lists, by name and by group of a file.

        Each is its name and how the config describes it.
        """
        by_name: dict[str, tuple[str, Any]] = {}
        by_group: dict[str, tuple[str, Any]] = {}
        counts: Counter[str] = Counter()
        listed = mapping(self.config).get("layers")
        for described in listed if isinstance(listed, list) else []:
            kind = snake_case(str(mapping(described).get("class_name", "")))
            group = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
            name = str(mapping(mapping(described).get("config")).get("name", ""))
            by_name[name] = by_group[group] = name, described
        return by_name, by_group

    @property
    def mode(self) -> str:
        """How Keras quantized it; empty if it did not."""
        policy = (self.config or {}).get("dtype")
        inner = policy.get("config") if isinstance(policy, Mapping) else None
        name = inner.get("name") if isinstance(inner, Mapping) else policy
        mode = inner.get("mode") if isinstance(inner, Mapping) else None
        text = mode if isinstance(mode, str) else name if isinstance(name, str) else ""
        return next((one for one in MODES if text.startswith(one)), "")

    def variables(self, count: int) -> tuple[Variable, ...] | None:
        """Return its variables in the order of the file; None if that cannot be known.

        Args:
            count: how many there are.

        Example:
            >>> [one.name for one in Layer("dense").variables(1)]
            ['kernel']
            >>> Layer("batch_normalization").variables(3) is None
            True
        """
        rows = VARIABLES.get(self.kind, ())
        if self.config is not None:
            choices = [tuple(row for row in rows if self._has(row))]
        else:
            left_out = len(rows) - count
            optional = [row for row in rows if row.only_with]
            choices = [
                tuple(row for row in rows if row not in without)
                for without in combinations(optional, max(left_out, 0))
            ]
        fitting = [choice for choice in choices if len(choice) == count]
        return fitting[0] if len(fitting) == 1 else None

    def _has(self, row: Variable) -> bool:
        assert self.config is not None
        return all(
            bool(self.config.get(key.lstrip("!"), key == "use_bias")) != key.startswith("!")
            for key in row.only_with
        )

    def parts(self, count: int) -> list[tuple[Variable, str]] | None:
        """Return variables and what each dataset holds of them, in the order of the file.

        Returns:
            Pairs of a variable and "" for itself, else what its quantized form adds to its name;
            None if that cannot be known.
        """
        if self.mode == "float8":
            plain = self.variables(count - len(_FLOAT8))
            return None if plain is None else [(row, "") for row in (*plain, *_FLOAT8)]
        if self.mode not in MODES[:2]:
            plain = None if self.mode else self.variables(count)
            return None if plain is None else [(row, "") for row in plain]
        rows = [row for row in VARIABLES.get(self.kind, ()) if self._has(row)]
        weights = [row for row in rows if row.role != "bias"]
        if len(weights) != 1:
            return None
        found = [*((row, "") for row in rows), (weights[0], "scale")]
        if self.mode == "int4" and count == len(found) + 2:
            found += [(weights[0], "zero"), (weights[0], "g_idx")]
        return found if len(found) == count else None

    def column_dims(self, row: Variable, shape: tuple[int, ...]) -> int:
        """Return how many trailing dims of a variable are its columns: those of its outputs."""
        if row.column_dims:
            return min(row.column_dims, len(shape))
        equation = (self.config or {}).get("equation")
        if isinstance(equation, str) and equation.count(",") == 1 and "->" in equation:
            inputs, output = equation.split("->")
            letters = inputs.split(",")[1].strip()
            own = [letter in output for letter in letters]
            outputs = sum(own)
            if len(letters) == len(shape) and all(own[len(own) - outputs :]) and outputs:
                return outputs
        return 1
