"""Packed linear layers over several processes, each with its part of the weight (torch).

``column`` gives a process some of the outputs of a layer, ``row`` some of its inputs. A row
layer after column layers needs no exchange but the sum at its end: two matrices of a block, or
query, key and value before the output of attention. For inference: the sums have no gradient
that reaches other processes.

Source: Shoeybi et al., *Megatron-LM*, arXiv:1909.08053, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from tpack.codec import LAYOUTS, Scale
from tpack.container import Entry
from tpack.errors import UnsupportedError, UsageError, locate
from tpack.nn import BitLinear, TernaryLinear, ternary_linear
from tpack.nn.reference import activation_gain

STYLES = ("column", "column-gather", "row")


@dataclass(frozen=True)
class Part:
    """What a process holds of a stored tensor: ``start`` to ``stop`` along ``dim``."""

    dim: int
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """Copy the part, so that the rest can leave the memory."""
        part = tensor.narrow(self.dim, self.start, self.stop - self.start)
        return part.clone(memory_format=torch.contiguous_format)

    def of_entry(self, entry: Entry) -> Entry:
        """The part in a file, for dim 0: it lies there in one piece."""
        assert self.dim == 0
        row = entry.nbytes // entry.shape[0]
        return replace(
            entry,
            shape=(self.stop - self.start, *entry.shape[1:]),
            start=entry.start + self.start * row,
            stop=entry.start + self.stop * row,
        )


def parallelize(module: nn.Module, device_mesh: DeviceMesh, plan: Mapping[str, str]) -> nn.Module:
    """Keep only this process's part of the packed layers that a plan names, in place.

    Args:
        module: a packed model, the same in every process.
        device_mesh: the processes, in one dimension.
        plan: pattern of module names → ``column``, ``column-gather`` (each process gets all
            outputs) or ``row``. ``*.up_proj`` also matches an ``up_proj`` at the top; of
            several patterns that match a layer the first counts.

    Raises:
        UsageError: the plan names nothing, a style that is unknown, or no packed linear layer.
        UnsupportedError: a weight that does not divide evenly.
    """
    state = module.state_dict()
    parts = split(module, device_mesh, plan)
    own = {name: parts[name].of(state[name]) if name in parts else state[name] for name in state}
    module.load_state_dict(own, strict=True, assign=True)
    return module


def split(module: nn.Module, device_mesh: DeviceMesh, plan: Mapping[str, str]) -> dict[str, Part]:
    """Replace the layers of a plan by empty ones of the size that this process holds.

    Args, Raises: as ``parallelize``.

    Returns:
        The parts of stored tensors that belong into them, by name.
    """
    if device_mesh.ndim != 1:
        raise UsageError(
            f"device_mesh has {device_mesh.ndim} dimensions, expected 1. Take one of them: "
            "mesh['tp']."
        )
    parts: dict[str, Part] = {}
    for path, style in _matches(module, plan).items():
        layer = module.get_submodule(path)
        if type(layer) not in (TernaryLinear, BitLinear):
            raise UsageError(
                f"parallel: {path} is a {type(layer).__name__}, expected a TernaryLinear or "
                "BitLinear."
            )
        assert isinstance(layer, TernaryLinear)
        with locate(tensor=f"{path}.weight"):
            local, own = _split_layer(layer, style, device_mesh)
        module.set_submodule(path, local.train(layer.training))
        parts |= {f"{path}.{name}": part for name, part in own.items()}
    return parts


def _matches(module: nn.Module, plan: Mapping[str, str]) -> dict[str, str]:
    """Find the layers that a plan names, and the style of each."""
    styles: dict[str, str] = {}
    paths = [path for path, _ in module.named_modules() if path]
    for pattern, style in plan.items():
        if style not in STYLES:
            raise UsageError(f"parallel: {style!r:.40} is unknown, expected {', '.join(STYLES)}.")
        found = [
            path for path in paths if fnmatchcase(f".{path}", pattern) or fnmatchcase(path, pattern)
        ]
        if not found:
            raise UsageError(f"parallel: {pattern!r:.80} matches no module.")
        for path in found:
            styles.setdefault(path, style)
    return styles


def _split_layer(
    layer: TernaryLinear, style: str, mesh: DeviceMesh
) -> tuple[TernaryLinear, dict[str, Part]]:
    """Make the layer of this process, on the meta device; say which parts of the whole fill it."""
    per_byte, group = LAYOUTS[layer.options["layout"]].per_byte, layer.group_size
    scale, bias = layer.weight_scale, layer.bias
    granularity = Scale.of(scale.shape, layer.shape, 1, group)
    options = {
        "scale": str(granularity),
        "scale_dtype": scale.dtype,
        "layout": layer.options["layout"],
        "dtype": scale.dtype if bias is None else bias.dtype,
        "mesh": mesh,
    }
    rounds = isinstance(layer, BitLinear)
    if style == "row":
        start, stop = _share("in_features", layer.in_features, math.lcm(per_byte, group or 1), mesh)
        make: type[TernaryLinear] = BitRowLinear if rounds else RowLinear
        sizes = (stop - start, layer.out_features)
        parts = {"weight_packed": Part(1, start // per_byte, -(-stop // per_byte))}
        if group or granularity.kind == "column":
            size = group or 1
            parts["weight_scale"] = Part(1, start // size, -(-stop // size))
    else:
        start, stop = _share("out_features", layer.out_features, 1, mesh)
        make = BitColumnLinear if rounds else ColumnLinear
        sizes = (layer.in_features, stop - start)
        options["gather"] = style == "column-gather"
        own_scale = granularity.kind in ("row", "group")
        names = ["weight_packed", *(["weight_scale"] * own_scale)]
        parts = dict.fromkeys([*names, *(["bias"] * (bias is not None))], Part(0, start, stop))
    with torch.device("meta"):
        return make(*sizes, bias is not None, **options), parts


def _share(what: str, size: int, unit: int, mesh: DeviceMesh) -> tuple[int, int]:
    """Return where the equal share of this process begins and ends.

    Raises:
        UnsupportedError: the shares would not be equal, or not whole units.
    """
    count, rank = mesh.size(), mesh.get_local_rank()
    if size % (count * unit):
        raise UnsupportedError(
            f"has {size} {what}, expected a multiple of {count * unit} for {count} processes. "
            "Leave it out of the plan."
        )
    return size // count * rank, size // count * (rank + 1)


# ---- layers


class ColumnLinear(TernaryLinear):
    """Some outputs of a TernaryLinear.

    Args:
        in_features, out_features, bias, options: of ``TernaryLinear``, of this process's part.
        mesh: the processes.
        gather: give all outputs.
    """

    is_part: ClassVar[bool] = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        mesh: DeviceMesh,
        gather: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        self.mesh, self.gather = mesh, gather

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features), or all outputs, in the dtype of x."""
        return self.gathered(super().forward(x))

    def gathered(self, y: Tensor) -> Tensor:
        """Put the outputs of all processes side by side, if they are wanted."""
        if not self.gather:
            return y
        all_outputs = [torch.empty_like(y) for _ in range(self.mesh.size())]
        dist.all_gather(all_outputs, y.contiguous(), group=self.mesh.get_group())
        return torch.cat(all_outputs, dim=-1)


class BitColumnLinear(ColumnLinear):
    """Some outputs of a BitLinear: every process has all inputs, and rounds them alike."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features), or all outputs, in the dtype of x."""
        return self.gathered(BitLinear.forward(self, x))  # type: ignore[arg-type]


class RowLinear(TernaryLinear):
    """Some inputs of a TernaryLinear; the outputs are sums over the processes.

    Args:
        in_features, out_features, bias, options: of ``TernaryLinear``, of this process's part.
        mesh: the processes.
    """

    is_part: ClassVar[bool] = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        mesh: DeviceMesh,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        self.mesh = mesh

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features), or all inputs → (..., out_features), in the dtype of x."""
        return self.total(self.own(x).float()).to(x.dtype)

    def own(self, x: Tensor) -> Tensor:
        """Return this process's part of x, if x has all inputs."""
        if x.shape[-1] == self.in_features * self.mesh.size():
            x = x.narrow(-1, self.in_features * self.mesh.get_local_rank(), self.in_features)
        self.check_width(x)
        return x

    def total(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Sum the products of all processes in float32, divided by a gain of x; add the bias."""
        y = ternary_linear(x, self.weight_packed, self.weight_scale, **self.options)
        dist.all_reduce(y, group=self.mesh.get_group())
        y = y if gain is None else y / gain
        return y if self.bias is None else y + self.bias.float()


class BitRowLinear(RowLinear):
    """Some inputs of a BitLinear; all are rounded by the largest input of any process."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features), or all inputs → (..., out_features), in the dtype of x."""
        own = self.own(x).float()
        gain = activation_gain(own)  # the larger the inputs, the smaller the gain
        dist.all_reduce(gain, dist.ReduceOp.MIN, group=self.mesh.get_group())
        return self.total((own * gain).round().clamp(-128, 127), gain).to(x.dtype)
