"""How many architectures of transformers are captured whole, and what stops the others.

    python tests/survey.py                        decoders and encoders, an hour on one core
    python tests/survey.py --groups decoder       of some groups
    python tests/survey.py --only gpt2 bert       of some architectures

An architecture counts as captured only if all of this holds for a small random model of it, in
float32 and within 1e-5 of the largest number:

- the program that is captured gives what the model gives, at each size that the model takes:
  one token, longer than the window and than ``max_position_embeddings``, other batches
  (``one length`` and ``to a length`` are counted apart: other lengths are refused);
- so do the generated module and the standalone one, on the model's own state dict;
- so does a capture with ``attention_mask`` as an argument, where the model takes one.

Each runs in a process of its own, with a limit of time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from small_models import EXTRA_INPUTS, families, small_model
from torch import Tensor, nn

import tpack
from tpack.capturing import trace_module
from tpack.capturing.comparison import built, tensors_in
from tpack.codegen import generate_pytorch_code
from tpack.errors import TpackError
from tpack.layerdef import slots

SECONDS = 150
TOLERANCE = 1e-5
SIZES = ((1, 1), (1, 5), (3, 17), (2, 33), (1, 80))


class DifferentError(Exception):
    """A captured model gave another result."""


def example(model: nn.Module, kind: str, group: str, batch: int, length: int) -> dict[str, Tensor]:
    """Return arguments of forward: token ids, pictures or sounds."""
    generator = torch.Generator().manual_seed(batch * 100 + length)
    if kind in EXTRA_INPUTS:
        return EXTRA_INPUTS[kind](batch, length, generator)
    if group == "image":
        size = getattr(model.config, "image_size", 32)
        size = size if isinstance(size, int) else size[0]
        channels = getattr(model.config, "num_channels", 3)
        shape = (batch, channels, size, size)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    if group == "audio":
        return {model.main_input_name: torch.randn((batch, 400 * length), generator=generator)}
    return {"input_ids": torch.randint(3, 96, (batch, length), generator=generator)}


def padding(batch: int, length: int) -> Tensor:
    """Return a mask that hides the first or last tokens of some rows."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(0, batch, 2):
        mask[row, : length // 3] = 0
    return mask


def same(found: Any, expected: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise unless the tensors of two results are equal to rounding."""
    pairs = list(zip(tensors_in(found), tensors_in(expected), strict=True))
    for one, other in pairs:
        if one.shape != other.shape or one.dtype != other.dtype:
            raise DifferentError(f"{what}: {one.shape} {one.dtype}, expected {other.shape}")
        if not one.dtype.is_floating_point:
            if not torch.equal(one, other):
                raise DifferentError(f"{what}: other integers")
            continue
        a, b = one.double().nan_to_num(5, 6, 7), other.double().nan_to_num(5, 6, 7)
        apart = (a - b).abs().max().item() / max(b.abs().max().item(), 1e-9)
        if apart > tolerance:
            raise DifferentError(f"{what}: differs by {apart:.1e}")


def namespace(source: str) -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, "generated", "exec"), found)  # our own text
    return found


def checked(model: nn.Module, kind: str, group: str) -> dict[str, Any]:
    """Capture a model and compare it; return what was found."""
    given = example(model, kind, group, 2, 9)
    began = time.time()
    captured = trace_module(model, (), given, None)
    captured.compare()
    program = captured.program(())
    taken = time.time() - began
    tensors = {slot.name: captured.graph.stored[slot.name] for slot in slots(program)}
    modules = {"program": built(program, tensors)}
    lines = 0
    for name, standalone in (("source", False), ("standalone", True)):
        source = generate_pytorch_code(program, standalone=standalone)
        lines = lines or source.count("\n")
        modules[name] = namespace(source)[program.root]().eval()
        modules[name].load_state_dict(tensors, strict=True)
    sizes = compared(model, modules, lambda b, n: example(model, kind, group, b, n), captured)
    return {"seconds": round(taken, 1), "lines": lines, "sizes": sizes, "notes": captured.notes}


def compared(
    model: nn.Module,
    modules: dict[str, nn.Module],
    make: Callable[[int, int], dict[str, Tensor]],
    captured: Any,
) -> list[str]:
    """Compare modules with a model at every size that it takes and the capture left free."""
    done: list[str] = []
    for batch, length in ((2, 9), *SIZES):
        given = make(batch, length)
        inputs = captured.graph.inputs
        fixed = any(
            isinstance(size, int) and size != own
            for value, tensor in zip(inputs, given.values(), strict=True)
            for size, own in zip(value.shape, tensor.shape, strict=True)
        )
        if fixed or f"{batch}x{length}" in done:
            continue
        try:
            expected = model(**given)
        except Exception:  # noqa: BLE001  # a size that the model does not take
            continue
        for name, module in modules.items():
            try:
                found = module(*given.values())
            except Exception as error:
                if len(done) > 2:  # a refusal of a size is no wrong result
                    return [*done, f"{name} refuses {batch}x{length}"]
                raise DifferentError(f"{name} {batch}x{length}: {error}") from error
            same(found, expected, f"{name} {batch}x{length}")
        done.append(f"{batch}x{length}")
    return done


def masked(model: nn.Module, kind: str, group: str) -> str:
    """Capture a model with ``attention_mask``; return why not, or nothing."""

    def make(batch: int, length: int) -> dict[str, Tensor]:
        return example(model, kind, group, batch, length) | {
            "attention_mask": padding(batch, length)
        }

    try:
        model(**make(2, 9))
    except Exception:  # noqa: BLE001  # it takes no mask of this kind
        return "takes none"
    try:
        captured = trace_module(model, (), make(2, 9), None)
        captured.compare()
        program = captured.program(())
    except TpackError as error:
        return str(error)
    tensors = {slot.name: captured.graph.stored[slot.name] for slot in slots(program)}
    compared(model, {"masked program": built(program, tensors)}, make, captured)
    return ""


def tried(group: str, kind: str, cls: str, *, mask: bool) -> dict[str, Any]:
    """Try one architecture, and say what happened."""
    row: dict[str, Any] = {"group": group, "kind": kind, "class": cls}
    try:
        model = small_model(kind, cls)
        if group == "image":
            model.config.return_dict = True
        model(**example(model, kind, group, 2, 9))
    except Exception as error:  # noqa: BLE001  # transformers may raise anything
        where = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0]
        why = f"{type(error).__name__}: {first} ({Path(where.filename).name}:{where.lineno})"
        return row | {"state": "not built", "why": why}
    row["parameters"] = sum(p.numel() for p in model.parameters())
    row["experts"] = any("expert" in name for name, _ in model.named_parameters())
    try:
        row |= checked(model, kind, group) | {"state": "captured", "why": ""}
        if "refuses" in row["sizes"][-1]:
            row |= {"state": "to a length", "why": row["sizes"][-1]}
        elif group in ("decoder", "encoder") and len({s.split("x")[1] for s in row["sizes"]}) < 3:
            row |= {"state": "one length", "why": " ".join(row["notes"])}
        if mask and group in ("decoder", "encoder"):
            row["mask"] = masked(model, kind, group)
    except TpackError as error:
        row |= {"state": "refused", "why": str(error)}
    except DifferentError as error:
        row |= {"state": "DIFFERS", "why": str(error)}
    except Exception as error:  # noqa: BLE001  # a fault of tpack
        where = traceback.extract_tb(error.__traceback__)[-1]
        row |= {
            "state": "FAULT",
            "why": f"{type(error).__name__}: {str(error)[:200]} "
            f"({Path(where.filename).name}:{where.lineno})",
        }
    return row


def apart(group: str, kind: str, cls: str, *, mask: bool) -> dict[str, Any]:
    """Try one architecture in a process of its own, within a limit of time."""
    reader, writer = os.pipe()
    began = time.time()
    child = os.fork()
    if not child:
        os.close(reader)
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with torch.no_grad():
            row = tried(group, kind, cls, mask=mask)
        with os.fdopen(writer, "w") as file:
            json.dump(row, file, default=str)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    row = json.loads(text) if text else {"group": group, "kind": kind, "class": cls}
    row.setdefault("state", "refused")
    row.setdefault("why", f"takes over {SECONDS} s, or too much memory")
    return row | {"all": round(time.time() - began, 1)}


def main() -> None:
    """Try the architectures, print the shares, and save the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", nargs="*", default=["decoder", "encoder"])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--part", default="0/1", help="which share of them, such as 0/2")
    parser.add_argument("--no-mask", action="store_true", help="no capture with a mask")
    parser.add_argument("--keep", action="store_true", help="only try those that failed before")
    parser.add_argument("--output", type=Path, default=Path("build/survey.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    tpack.capture(nn.Linear(2, 2).eval(), (torch.ones(3, 2),))  # what it imports, all have
    part, parts = map(int, options.part.split("/"))
    rows = []
    wanted = [f for f in families() if f[0] in options.groups]
    wanted = [f for f in wanted if not options.only or f[1] in options.only]
    before = json.loads(options.output.read_text()) if options.keep else []
    rows += [row for row in before if row["state"] in ("captured", "not built")]
    done = {(row["group"], row["kind"]) for row in rows}
    wanted = [one for one in wanted if one[:2] not in done]
    for group, kind, cls in wanted[part::parts]:
        row = apart(group, kind, cls, mask=not options.no_mask)
        rows.append(row)
        why = re.sub(r"\s+", " ", row["why"])[:230]
        mask = f" MASK: {row['mask'][:150]}" if row.get("mask") else ""
        print(f"{group} {kind}: {row['state']} {why}{mask} [{row['all']} s]", flush=True)
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps(rows, indent=1))
    for group in options.groups:
        states = Counter(row["state"] for row in rows if row["group"] == group)
        built_ones = sum(states.values()) - states["not built"]
        share = states["captured"] / max(built_ones, 1)
        print(
            f"{group}: {states['captured']} of {built_ones} captured ({share:.0%}); {dict(states)}"
        )


if __name__ == "__main__":
    main()
