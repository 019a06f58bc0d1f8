"""Train packed weights: ``unfreeze`` gives them float masters, ``freeze`` packs them.

The owner of a packed weight ``p`` gets a parameter ``p`` in place of ``p_packed`` and
``p_scale``, and a class made from its own in which ``p_packed`` is the ternary weight
that the master stands for, in floats, and ``p_scale`` is one. The ops take that as
they take bytes, so every ``forward`` stays as it is: of built modules, of generated
ones, and of the layers in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tpack.codec import GROUP_SIZES, Scale
from tpack.errors import InputError, UsageError, locate, unknown
from tpack.nn.code_check import check_legal
from tpack.nn.reference import dequantize, pack_trits
from tpack.nn.ternarization import METHODS, Rule
from tpack.wording import spell

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Frozen:
    """A weight as it was packed, and what makes its master ternary.

    Attributes:
        rule: of training; its granularity is that of the scale when packed again.
        packed: the bytes.
        scale: as stored.
        granularity: of that scale.
        layout: of those bytes, and of the next ones.
    """

    rule: Rule
    packed: Tensor
    scale: nn.Parameter
    granularity: Scale
    layout: str

    def master(self, device: torch.device) -> Tensor:
        """Return the first master: float32, or float64 if the scale is."""
        scale = self.scale.detach().to(device)
        weight = dequantize(
            self.packed.to(device),
            scale if scale.dtype == torch.float64 else scale.float(),
            self.rule.shape,
            layout=self.layout,
            group_size=self.granularity.group_size,
        )
        return self.rule.master(weight)

    def pack(self, master: Tensor) -> tuple[Tensor, nn.Parameter]:
        """Return bytes and scale of a master; the old ones if nothing trained it.

        Raises:
            InputError: the master has NaN or infinity, or its scale overflows.
        """
        device = master.device
        first = self.master(device).to(master.dtype)
        same = self.granularity == self.rule.granularity
        if same and torch.equal(master, first):
            scale = self.scale.detach().to(device)
            moved = device != self.scale.device
            return self.packed.to(device), nn.Parameter(scale) if moved else self.scale
        if not master.isfinite().all():
            raise InputError(
                "has NaN or infinity, expected finite values. Training may have "
                "diverged."
            )
        trits, scale = self.rule.quantize(master)
        if not scale.isfinite().all():
            raise InputError(
                f"needs a scale of more than {torch.finfo(scale.dtype).max:g}, which "
                f"{scale.dtype} cannot hold. Divide the weight by a constant first."
            )
        return pack_trits(trits, self.layout), nn.Parameter(scale)


class Unfrozen(nn.Module):
    """What a module's class also has while its weights are float masters.

    Its attributes start with ``_tpack``, which no name of a LayerDef does.
    """

    _tpack_frozen: dict[str, Frozen]
    _tpack_class: type[nn.Module]

    def extra_repr(self) -> str:
        """What the class says, and how each weight becomes ternary."""
        rules = [(name, frozen.rule) for name, frozen in self._tpack_frozen.items()]
        own = [f"{name}: {rule.method} per {rule.granularity}" for name, rule in rules]
        return ", ".join(filter(None, [super().extra_repr(), *own]))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the class by what it is made of: no import finds it."""
        state: Any = self.__getstate__()  # type: ignore[no-untyped-call]
        return _blank, (self._tpack_class, tuple(self._tpack_frozen)), state


def unfreeze(module: Module, method: str = "absmean", scale: str = "auto") -> Module:
    """Give every packed weight a float master to train, in place; return the module.

    A weight ``p`` becomes a parameter ``p`` in its logical shape, in float32, named as
    in a plain model. Each forward makes it ternary by the method, computes with that,
    and passes the gradient to the master unchanged (straight-through). Until a master
    changes, its ternary weight is the packed one, to rounding of the scale.

    The parameters are new: make the optimizer, DDP and compiled versions of the module
    afterwards. Whether it is in training or eval mode stays as it is.

    Args:
        module: built, loaded or generated, also from standalone source.
        method: ``absmean``, ``twn`` or ``mse``.
        scale: ``auto`` (as the weight is packed), ``tensor``, ``row``, ``column`` or
            ``group:N``.

    Raises:
        UsageError: an unknown method or scale, no packed weight, or a scale that the
            source of the module does not provide for.
        FormatError: rule R14: packed bytes that hold no codes.

    Example:
        >>> from tpack.nn import TernaryLinear
        >>> layer = unfreeze(TernaryLinear(4, 2))
        >>> sorted(layer.state_dict())
        ['bias', 'weight']
        >>> sorted(freeze(layer).state_dict())
        ['bias', 'weight_packed', 'weight_scale']
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    wanted = None if scale == "auto" else Scale.parse(scale)
    found = []
    for prefix, owner in module.named_modules():
        for name in _packed(owner):
            with locate(tensor=_path(prefix, name)):
                _check_bytes(owner, name, _path(prefix, name))
                found.append((owner, name, _frozen(owner, name, method, wanted)))
    if not found:
        raise UsageError(
            f"{type(module).__name__} has no packed weights, expected a loaded, built "
            "or generated module that is not unfrozen yet."
        )
    for owner, name, frozen in found:
        _unfreeze(owner, name, frozen)
    return module


def freeze(module: Module) -> Module:
    """Pack the masters of an unfrozen module, in place; return the module.

    It computes what it computed before. A weight whose master is as ``unfreeze`` made
    it gets back the very bytes and scale it had. What is not unfrozen stays as it is.

    Raises:
        InputError: NaN or infinity in a master; the module then stays unfrozen.
    """
    found = []
    for prefix, owner in module.named_modules():
        if isinstance(owner, Unfrozen):
            for name, frozen in _masters(owner).items():
                with locate(tensor=_path(prefix, name)):
                    master = getattr(owner, name).detach()
                    found.append((owner, name, *frozen.pack(master)))
    for owner, name, packed, stored in found:
        _freeze(owner, name, packed, stored)
    return module


def is_unfrozen(module: nn.Module) -> bool:
    """Return whether some weight of a module is a float master."""
    return any(isinstance(owner, Unfrozen) for owner in module.modules())


def _check_bytes(owner: Any, name: str, path: str) -> None:
    """Refuse a packed weight whose bytes hold no codes."""
    layouts: dict[str, str] = getattr(owner, "ternary_layouts", {})
    check_legal(
        getattr(owner, f"{name}_packed"), layouts.get(name, "t2"), f"{path}_packed"
    )


def _path(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _packed(owner: nn.Module) -> Iterator[str]:
    """Return the packed weights that a module owns itself."""
    buffers = dict(owner.named_buffers(recurse=False))
    shapes: dict[str, Any] = getattr(owner, "ternary_shapes", {})
    return (name for name in shapes if f"{name}_packed" in buffers)


def _masters(owner: Any) -> dict[str, Frozen]:
    """Return the masters that a module owns itself."""
    return getattr(owner, "_tpack_frozen", {})


def _is_layer(owner: Any) -> bool:
    """Return whether a module is of ``tpack.nn``, or its copy in generated source."""
    return isinstance(getattr(owner, "options", None), dict)


def _frozen(owner: Any, name: str, method: str, wanted: Scale | None) -> Frozen:
    packed = getattr(owner, f"{name}_packed")
    scale = getattr(owner, f"{name}_scale")
    shape, split = owner.ternary_shapes[name], packed.dim() - 1
    known = getattr(owner, "ternary_groups", {}).get(name, 0)
    now = Scale.of(scale.shape, shape, split, known)
    then = now if wanted is None else wanted
    # a layer keeps its group size in an attribute; other source states one where it was
    # generated for groups, and infers the usual ones where it was not
    fits = now.kind != "group" and then.group_size in GROUP_SIZES
    takes = (
        fits if then.kind == "group" else then.kind != "column" or now.kind != "group"
    )
    if now != then and not (_is_layer(owner) or takes):
        raise UsageError(
            f"has scales per {now}, and the source of {type(owner).__name__} no place "
            f"for {then}. Convert the model with {spell(scale=str(then))}."
        )
    rule = Rule(method, then, tuple(shape), split, scale.dtype)
    layout = getattr(owner, "ternary_layouts", {}).get(name, "t2")
    return Frozen(rule, packed, scale, now, layout)


def _unfreeze(owner: Any, name: str, frozen: Frozen) -> None:
    if not isinstance(owner, Unfrozen):
        owner._tpack_class = type(owner)  # noqa: SLF001
    masters = {**_masters(owner), name: frozen}
    master = nn.Parameter(frozen.master(frozen.packed.device))
    delattr(owner, f"{name}_packed")
    _replace(owner, f"{name}_scale", name, master)
    _set_masters(owner, masters)


def _freeze(owner: Any, name: str, packed: Tensor, scale: nn.Parameter) -> None:
    masters = dict(_masters(owner))
    frozen = masters.pop(name)
    _set_masters(owner, masters)
    owner.register_buffer(f"{name}_packed", packed)
    _replace(owner, name, f"{name}_scale", scale)
    if frozen.granularity != frozen.rule.granularity:
        size = frozen.rule.granularity.group_size
        owner.ternary_groups = {**getattr(owner, "ternary_groups", {}), name: size}
        if _is_layer(owner):
            owner.group_size = size
            owner.options = {**owner.options, "group_size": size}


def _replace(owner: nn.Module, old: str, new: str, value: nn.Parameter) -> None:
    """Put a parameter in the place of another: optimizers number them in order."""
    names = [new if name == old else name for name in owner._parameters]  # noqa: SLF001
    delattr(owner, old)
    owner.register_parameter(new, value)
    for name in names:
        owner._parameters[name] = owner._parameters.pop(name)  # noqa: SLF001


def _set_masters(owner: Any, masters: dict[str, Frozen]) -> None:
    """Give a module the class for these masters; its own class if there are none."""
    base = owner._tpack_class  # noqa: SLF001
    owner._tpack_frozen = masters  # noqa: SLF001
    owner.__class__ = _class(base, tuple(masters)) if masters else base
    if not masters:
        del owner._tpack_frozen, owner._tpack_class  # noqa: SLF001


@cache
def _class(base: Any, names: tuple[str, ...]) -> type[Unfrozen]:
    """Return the class of a module whose weights ``names`` are masters."""
    members: dict[str, Any] = {"__module__": base.__module__, "__doc__": base.__doc__}
    for name in names:
        members[f"{name}_packed"] = property(_ternary(name), _refuse)
        members[f"{name}_scale"] = property(_one(name), _refuse)
    return type(base.__name__, (Unfrozen, base), members)


def _ternary(name: str) -> Any:
    def ternary(owner: Any) -> Tensor:
        return _masters(owner)[name].rule.ternary(getattr(owner, name))

    return ternary


def _one(name: str) -> Any:
    def one(owner: Any) -> Tensor:
        dtype = _masters(owner)[name].rule.dtype
        return torch.ones(1, dtype=dtype, device=getattr(owner, name).device)

    return one


def _refuse(owner: nn.Module, _: Any) -> None:
    raise UsageError(
        f"{type(owner).__name__} is unfrozen, expected its float weight to be set. "
        "Set that, or freeze the module first."
    )


def _blank(base: Any, names: tuple[str, ...]) -> Unfrozen:
    """Return an empty unfrozen module, for copies and pickles to fill."""
    cls = _class(base, names)
    return cls.__new__(cls)
