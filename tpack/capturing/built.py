"""Modules that were built from LayerDefs: their own program, and names for those inside others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tpack.build import BuiltModule, build_module, program_of
from tpack.layerdef import Program, Unspecified
from tpack.nn import NO_CACHE


def unchanged_program(module: nn.Module) -> Program | None:
    """Return the program that a module was built from, if it still is that module.

    None if it was built otherwise, if its forward is not known, or if a person has changed it:
    replaced a layer, cast it, or hooked into it.
    """
    program = program_of(module)
    if program is None or any(
        isinstance(item, Unspecified) for layer in program.layers for item in layer.body
    ):
        return None
    fresh = build_module(program, device="meta")
    if _changed_layer(module, fresh) is not None:
        return None
    now, then = module.state_dict(), fresh.state_dict()
    if now.keys() != then.keys() or any(
        (now[name].shape, now[name].dtype) != (then[name].shape, then[name].dtype) for name in now
    ):
        return None
    return program


def changed_layer(module: nn.Module, program: Program) -> str | None:
    """Return the path of a layer that is not the one that was built, or is hooked into.

    None if all layers are those of the program that the module was built from.
    """
    return _changed_layer(module, build_module(program, device="meta"))


def _changed_layer(module: nn.Module, fresh: nn.Module) -> str | None:
    now: dict[str, nn.Module] = dict(module.named_modules())
    then: dict[str, nn.Module] = dict(fresh.named_modules())
    for path, one in now.items():
        expected = then.get(path)
        same = expected is not None and (
            (_kind(one), one.extra_repr()) == (_kind(expected), expected.extra_repr())
        )
        if not same or _is_hooked(one):
            return path
    return next((path for path in then if path not in now), None)


def _kind(module: nn.Module) -> tuple[type[nn.Module], str]:
    return type(module), getattr(module, "_tpack_layer", "")


def _is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)  # noqa: SLF001
    return any(hooks) or "forward" in module.__dict__


@contextmanager
def named_layers(module: nn.Module) -> Iterator[None]:
    """While tracing, let built modules have the class names and arguments of their LayerDefs."""
    before = [(one, one.__class__) for one in module.modules() if isinstance(one, BuiltModule)]
    try:
        for one, kind in before:
            one.__class__ = _named(one, kind)
        yield
    finally:
        for one, kind in before:
            one.__class__ = kind


def _named(module: BuiltModule, base: Any) -> Any:
    steps = module._tpack_steps  # noqa: SLF001

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self, *args, **kwargs)

    defaults = dict.fromkeys(steps.caches, NO_CACHE)
    given = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=defaults.get(name, inspect.Parameter.empty),
        )
        for name in ("self", *steps.inputs)
    ]
    forward.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    name = module._tpack_layer  # noqa: SLF001
    return type(name, (base,), {"__module__": base.__module__, "forward": forward})
