"""Turn trees and source into modules with random weights, for the tests that run them."""

from __future__ import annotations

import numpy as np
import torch
from strategies import Runnable
from torch import Tensor, nn

from tpack import codec
from tpack.build import build_module
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import LayerDef, Program


def from_source(tree: LayerDef | Program, standalone: bool = False) -> nn.Module:
    """The root module of generated source, in eval mode."""
    namespace: dict[str, object] = {"__name__": "generated"}
    exec(compile(generate_pytorch_code(tree, standalone), "generated.py", "exec"), namespace)
    name = tree.root if isinstance(tree, Program) else tree.name
    return namespace[name]().eval()  # type: ignore[operator]


def readings(tree: LayerDef | Program, seed: int = 0) -> dict[str, nn.Module]:
    """The three readings of a tree, with the same random weights."""
    built = build_module(tree)
    randomize(built, seed)
    modules = {"build": built, "source": from_source(tree), "standalone": from_source(tree, True)}
    for module in modules.values():
        module.load_state_dict(built.state_dict(), strict=True)
    return modules


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fill a built module with random trits, scales, floats and counters."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for owner in module.modules():
            layouts = getattr(owner, "ternary_layouts", {})
            shapes = getattr(owner, "ternary_shapes", {})
            for name, tensor in [*owner._buffers.items(), *owner._parameters.items()]:
                if tensor is None:
                    continue
                weight = name.removesuffix("_packed")
                if tensor.dtype == torch.uint8 and weight in shapes:
                    columns = int(np.prod(shapes[weight][tensor.dim() - 1 :]))
                    trits = rng.integers(-1, 2, (*tensor.shape[:-1], columns), dtype=np.int8)
                    packed = codec.pack(trits, layouts.get(weight, "t2"))
                    tensor.copy_(torch.from_numpy(packed))
                elif tensor.dtype.is_floating_point:
                    values = rng.standard_normal(tuple(tensor.shape))
                    if name == "running_var":
                        values = np.abs(values) + 0.5
                    tensor.copy_(torch.from_numpy(np.asarray(values)))
                else:
                    tensor.copy_(torch.from_numpy(rng.integers(0, 2, tuple(tensor.shape))))


def inputs_of(example: Runnable, seed: int = 0) -> list[Tensor]:
    """Random inputs for a program."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in example.inputs]


def dequantized(packed: Tensor, scale: Tensor, shape: tuple[int, ...], split: int = 1) -> Tensor:
    """The weight of t2 bytes, one trit at a time, in float64."""
    rows = packed.reshape(-1, packed.shape[-1]).tolist()
    columns = int(np.prod(shape[split:]))
    trits = [[(row[i // 4] >> 2 * (i % 4) & 3) - 1 for i in range(columns)] for row in rows]
    weight = torch.tensor(trits, dtype=torch.float64).reshape(len(rows), columns)
    scales = scale.double()
    per_column = scales.shape[-1] == columns == scales.numel()
    if scales.numel() > 1 and not per_column:
        scales = scales.reshape(len(rows), -1)
        groups = scales.shape[1]
        size = next(
            (g for g in (32, 64, 128, 256) if -(-columns // g) == groups), columns // groups
        )
        scales = (
            torch.stack([scales[:, i // size] for i in range(columns)], 1) if groups > 1 else scales
        )
    return (weight * scales.reshape(-1, scales.shape[-1])).reshape(shape)


def from_text(source, name):
    namespace = {"__name__": "generated"}
    exec(compile(source, "generated.py", "exec"), namespace)
    return namespace[name]().eval()


def same(left: Tensor, right: Tensor) -> None:
    """Check that two results are equal, bit for bit."""
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
