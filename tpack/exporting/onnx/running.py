"""Run a written model in ONNX Runtime beside the packed model, before it gets its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from tpack.build import program_of
from tpack.errors import UnsupportedError
from tpack.exporting.onnx.forms import Form
from tpack.exporting.onnx.signature import Signature, tensors_of
from tpack.layerdef import slots
from tpack.nn import KeyValueCache

#: The largest difference that a form may have, as a part of the largest result.
EXACT, FAST = 1e-5, 0.25
#: Results of programs that round as they run jump where a sum is near to a tie. They may differ by
#: this many times what a change of weights in their last place makes.
_JUMPS = 8
_SEED = 7


@dataclass(frozen=True)
class Comparison:
    """How a model computes in ONNX Runtime.

    Attributes:
        largest: the largest result of the packed model.
        difference: the largest difference from it.
    """

    largest: float
    difference: float

    @property
    def relative(self) -> float:
        """The difference as a part of the largest result, or of 1 if all are smaller."""
        return self.difference / max(1.0, self.largest)


def compare(path: Path, module: nn.Module, signature: Signature, form: Form) -> Comparison:
    """Run a model in a default session, at several sizes, and compare all results.

    Args:
        path: of the model.
        module: the packed one, in float32.

    Raises:
        UnsupportedError: ONNX Runtime does not run it, or gives other results.
    """
    session = _session(path)
    found = []
    with torch.no_grad():
        limits = _limits(module, signature)
        for sizes in signature.examples:
            feeds = _feeds(signature, sizes, limits)
            found.append(_compare(session, module, signature, feeds))
    worst = max(found, key=lambda one: one.relative)
    bound = FAST if form.fast else EXACT
    if worst.relative > bound and not form.fast:
        with torch.no_grad():
            bound = max(bound, _JUMPS * _noise(module, signature, limits))
    if not worst.relative <= bound:
        advice = (
            "Use form exact."
            if form.fast
            else "Please report this with the checkpoint: nothing was written."
        )
        raise UnsupportedError(
            f"gives other results in ONNX Runtime: by {worst.difference:.2g}, where the largest is "
            f"{worst.largest:.2g}, expected {bound:.0e} of that at most. {advice}"
        )
    return worst


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no common one but this
        raise UnsupportedError(
            f"is not taken by onnxruntime {onnxruntime.__version__}: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


Feeds = list[dict[str, Tensor]]


def _compare(session: Any, module: nn.Module, signature: Signature, feeds: Feeds) -> Comparison:
    """Compare a run, or with a cache several: each sees the tokens of those before."""
    cache = KeyValueCache()
    past: dict[str, Any] = {}
    largest = difference = 0.0
    for feed in feeds:
        expected = _expected(module, signature, feed, cache)
        if not past:
            past = {
                name: np.zeros((*each.shape[:-2], 0, each.shape[-1]), each.numpy().dtype)
                for name, each in zip(
                    signature.past(), expected[len(signature.outputs) :], strict=True
                )
            }
        given = {name: tensor.numpy() for name, tensor in feed.items()} | past
        try:
            results = session.run(None, given)
        except Exception as error:
            shapes = {name: tuple(tensor.shape) for name, tensor in feed.items()}
            raise UnsupportedError(f"fails in ONNX Runtime for {shapes}: {_line(error)}") from error
        for ours, theirs in zip(expected, results, strict=True):
            here = _measure(ours, torch.from_numpy(theirs))
            largest, difference = max(largest, here.largest), max(difference, here.difference)
        past = dict(zip(signature.past(), results[len(signature.outputs) :], strict=True))
    return Comparison(largest, difference)


def _measure(ours: Tensor, theirs: Tensor) -> Comparison:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise UnsupportedError(
            f"gives {theirs.dtype} {tuple(theirs.shape)} in ONNX Runtime, expected {ours.dtype} "
            f"{tuple(ours.shape)}."
        )
    if ours.numel() == 0:
        return Comparison(0.0, 0.0)
    one, other = ours.double(), theirs.double()
    same = (one == other) | (one.isnan() & other.isnan())
    difference = (one - other).abs().where(~same, 0.0).nan_to_num(torch.inf, torch.inf)
    largest = one.abs().where(one.isfinite(), 0.0)
    return Comparison(float(largest.max()), float(difference.max()))


def _expected(
    module: nn.Module, signature: Signature, feed: Mapping[str, Tensor], cache: KeyValueCache
) -> list[Tensor]:
    more = {} if signature.cache is None else {signature.cache: cache}
    results = tensors_of(module(**feed, **more))
    for layer in signature.layers:
        held = cache.layers[layer]
        for kept in (held.keys, held.values):
            assert kept is not None
            results.append(kept.narrow(-2, 0, held.filled).clone())
    return [result.contiguous() for result in results]


def _feeds(
    signature: Signature, shapes: Mapping[str, Sequence[int]], limits: Mapping[str, int]
) -> Feeds:
    """Return random inputs; with a cache, a second time for the tokens after the first."""
    generator = torch.Generator().manual_seed(_SEED)
    feeds = [_random(signature, shapes, limits, generator)]
    if signature.layers:
        feeds.append(_random(signature, shapes, limits, generator))
    return feeds


def _random(
    signature: Signature,
    shapes: Mapping[str, Sequence[int]],
    limits: Mapping[str, int],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    feed = {}
    for name, dtype in signature.inputs.items():
        shape = list(shapes[name])
        if dtype.is_floating_point:
            feed[name] = torch.randn(shape, generator=generator, dtype=dtype)
        elif name in limits:
            feed[name] = torch.randint(limits[name], shape, generator=generator, dtype=dtype)
        else:  # masks: most are kept
            feed[name] = (torch.rand(shape, generator=generator) < 0.9).to(dtype)
    return feed


def _limits(module: nn.Module, signature: Signature) -> dict[str, int]:
    """Return a bound for each input of integers: the rows of the largest table that it may index.

    A mask has none.
    """
    program = program_of(module)
    assert program is not None
    counts = {(slot.param.shape or (2,))[0] for slot in slots(program)} | {2}
    shapes = signature.examples[0]
    zeros = {name: torch.zeros(list(shapes[name]), dtype=d) for name, d in signature.inputs.items()}
    limits = {}
    for name, dtype in signature.inputs.items():
        if dtype != torch.int64 or name.endswith("mask"):
            continue
        for count in sorted(counts, reverse=True):
            feed = zeros | {name: torch.full_like(zeros[name], count - 1)}
            try:
                results = _expected(module, signature, feed, KeyValueCache())
            except (IndexError, RuntimeError):
                continue
            if all(result.isfinite().all() for result in results):
                limits[name] = count
                break
    return limits


def _noise(module: nn.Module, signature: Signature, limits: Mapping[str, int]) -> float:
    """Return how much results change where every float weight changes in its last place."""
    feeds = [_feeds(signature, shapes, limits) for shapes in signature.examples]
    before = list(_all(module, signature, feeds))
    generator = torch.Generator().manual_seed(_SEED)
    for tensor in module.state_dict().values():
        if tensor.dtype == torch.float32:
            signs = torch.randint(-1, 2, tensor.shape, generator=generator).float()
            tensor.copy_(tensor * (1 + signs * torch.finfo(torch.float32).eps))
    after = list(_all(module, signature, feeds))
    return max(_measure(a, b).relative for a, b in zip(before, after, strict=True))


def _all(module: nn.Module, signature: Signature, feeds: Sequence[Feeds]) -> Iterator[Tensor]:
    for several in feeds:
        cache = KeyValueCache()
        for feed in several:
            yield from _expected(module, signature, feed, cache)
