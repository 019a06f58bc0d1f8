"""Whole modules in a pickle: their parameters and buffers by name, as state_dict() has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tpack.errors import InputError
from tpack.sources.pickles.values import Placeholder, Tensor
from tpack.sources.state_dicts import KINDS

#: How deep modules may lie in each other, and how many tensors they may have in all.
_DEPTH, _COUNT = 100, 1_000_000
#: Classes that torch derives from those of ``KINDS``.
_DERIVED = {
    "NonDynamicallyQuantizableLinear": "Linear",
    **dict.fromkeys(("RNN", "LSTM", "GRU"), "RNNBase"),
    **dict.fromkeys(("RNNCell", "LSTMCell", "GRUCell"), "RNNCellBase"),
}
_ROLES = {name: role for role, names in KINDS for name in names}


class Opener:
    """Finds the dicts in what a pickle would have made.

    Attributes:
        roles: by the id of a tensor, its role by the class of its module.
        trained: by the id of a tensor of a module, whether it is a parameter.
        opened: the classes of modules whose tensors were found.
    """

    def __init__(self) -> None:
        self.roles: dict[int, str] = {}
        self.trained: dict[int, bool] = {}
        self.opened: set[str] = set()
        self._left = _COUNT

    def open(self, value: Any) -> Any:
        """Return the tensors of a module by name, or what lies in another object; else the value.

        Raises:
            InputError: modules that hold themselves, or too many of them.
        """
        if not isinstance(value, Placeholder):
            return value
        if _parts(value) is not None:
            return dict(self._tensors(value, "", 0))
        held = (value.pairs, value.state, value.items, value.args)
        return next(
            (each for each in held if each and isinstance(each, dict | list | tuple)), value
        )

    def _tensors(self, module: Placeholder, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        parts = _parts(module)
        self._left -= 1
        if depth > _DEPTH or self._left < 0:
            raise InputError(
                f"holds more than {_DEPTH} modules inside of each other, or {_COUNT} in all, "
                "expected a model. Save model.state_dict()."
            )
        if parts is None:
            return
        self.opened.add(module.name)
        parameters, buffers, modules = parts
        role = _role(module.name)
        transient = _state(module).get("_non_persistent_buffers_set")
        left = transient if isinstance(transient, set) else set()
        for held, is_parameter in ((parameters, True), (buffers, False)):
            for name, value in held.items():
                if not isinstance(value, Tensor) or (not is_parameter and name in left):
                    continue
                self._left -= 1
                self.trained.setdefault(id(value), is_parameter)
                if role and is_parameter:
                    self.roles.setdefault(id(value), role)
                yield f"{prefix}{name}", value
        for name, child in modules.items():
            if isinstance(child, Placeholder):
                yield from self._tensors(child, f"{prefix}{name}.", depth + 1)


def _state(module: Placeholder) -> Mapping[Any, Any]:
    """Return the attributes of an object; those of a traced module are an argument."""
    for state in (module.state, *module.args[:1]):
        if isinstance(state, dict):
            return state
    return {}


def _parts(value: Placeholder) -> tuple[Mapping[Any, Any], ...] | None:
    """Return the parameters, buffers and modules in a module; None if it is none."""
    state = _state(value)
    held = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    found = tuple(part for part in held if isinstance(part, dict))
    return found if len(found) == len(held) else None


def _role(name: str) -> str | None:
    """Return the role of the parameters of a class of torch, in TorchScript too."""
    library, _, kind = name.removeprefix("__torch__.").rpartition(".")
    return _ROLES.get(_DERIVED.get(kind, kind)) if library.startswith("torch.nn.") else None
