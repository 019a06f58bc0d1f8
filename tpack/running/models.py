"""A language model from what lies on the disk: by its LayerDefs, or in transformers.

Whatever it is, it becomes one function from tokens to logits. LayerDefs with a forward come first:
they need nothing but the file. A folder that has none, because it was packed from a state dict or
is not packed at all, is loaded by transformers, which has the code of its architecture. No code of
the folder runs.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tpack.checkpoint import load
from tpack.container import Checkpoint, is_checkpoint
from tpack.errors import InputError, LayerDefError, TpackError, UnsupportedError, locate
from tpack.hfconfig import is_packed, read_config
from tpack.layerdef import Program, lower
from tpack.nn import NO_CACHE, KeyValueCache
from tpack.running.settings import check_task
from tpack.text import plural
from tpack.wording import spell_call


@dataclass(frozen=True)
class LanguageModel:
    """A model that gives the logits of the next token.

    Attributes:
        path: where it is from.
        runs: what computes it: ``LayerDefs`` or ``transformers``.
        forward: takes ids, int64 (1, length), and a cache if it can use one; gives logits (1,
            length or 1, vocabulary). It is what ``tpack.generation.tokens`` takes.
        whole: takes ids alone, and gives the logits of all.
    """

    path: Path
    runs: str
    forward: Callable[..., Tensor]
    whole: Callable[[Tensor], Tensor]

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits after each token: float32 (length, vocabulary)."""
        with torch.no_grad():
            return self.whole(torch.tensor([list(ids)]))[0].float()


def check_model(path: str | Path) -> Program | None:
    """Check that a path is a model that can be run.

    Returns:
        The program of a packed one whose LayerDefs have a forward; None if transformers runs it.

    Raises:
        InputError: it is missing, malformed, or no model.
        LayerDefError: its LayerDefs have no forward, and it is no folder of transformers.
        UnsupportedError: it needs transformers, which is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("is missing, expected a model.", file=path)
    with locate(file=path):
        if is_checkpoint(path):
            with Checkpoint(path) as file:
                program = file.document.program
            if program is not None and _has_forward(program):
                return program
            config = read_config(path) if path.is_dir() else None
            if config is None:
                raise LayerDefError(
                    "names the layers of its model, but not the order of their calls. Convert the "
                    "folder of transformers that it is from, with its config.json, or the module "
                    "in Python with example_args."
                )
            if not is_packed(config):
                raise InputError(
                    "holds a file that tpack packed, beside a config.json that does not say so. "
                    f"Convert the whole folder of the model: {spell_call('convert')}."
                )
        elif not (path / "config.json").is_file():
            folder = path.is_file() and (path.parent / "config.json").is_file()
            raise InputError(
                "is neither packed by tpack nor a folder with a config.json of transformers. "
                + ("Give the folder that it lies in, or convert it." if folder else "Convert it.")
            )
        if find_spec("transformers") is None:
            raise UnsupportedError(
                "has no forward in its LayerDefs, so transformers has to run it, which is not "
                'installed. Install it: pip install "tpack-ternary[hf]". With it, tpack convert '
                "also writes the forward into the LayerDefs."
            )
    return None


def open_model(path: str | Path) -> LanguageModel:
    """Load a model: a packed file or folder, or a folder of transformers.

    Raises:
        InputError, LayerDefError, UnsupportedError: as ``check_model``; or it cannot be loaded, or
            gives no next tokens.
    """
    path = Path(path)
    program = check_model(path)
    with locate(file=path):
        return _in_transformers(path) if program is None else _by_layerdefs(path, program)


def _has_forward(program: Program) -> bool:
    return bool(lower(program.by_name[program.root], program).body)


def _by_layerdefs(path: Path, program: Program) -> LanguageModel:
    """Load a checkpoint whose LayerDefs have a forward.

    Raises:
        UnsupportedError: it takes other arguments than tokens, or gives no next tokens.
    """
    check_task(program.root)
    root = program.by_name[program.root]
    inputs = lower(root, program).inputs
    kinds = {param.name: param.param_type for param in root.params}
    caches = [name for name in inputs if kinds.get(name) == "Cache"]
    given = [name for name in inputs if name not in caches]
    if len(given) != 1:
        raise UnsupportedError(
            f"takes {' and '.join(given) or 'nothing'}, expected the numbers of "
            "tokens alone. Convert the model with example_args=(ids,)."
        )
    module = load(path)

    def whole(ids: Tensor) -> Tensor:
        with _computing(path, ids):
            return _logits(module(ids), path)

    def cached(ids: Tensor, cache: KeyValueCache = NO_CACHE) -> Tensor:
        with _computing(path, ids):
            return _logits(module(ids, **{caches[0]: cache}), path)

    return LanguageModel(path, "LayerDefs", cached if caches else whole, whole)


def _in_transformers(path: Path) -> LanguageModel:
    """Load a folder, packed or not, with the code of transformers."""
    with _silent():
        model = _from_pretrained(path)
    names = inspect.signature(model.forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
    uncached = {"use_cache": False} if "use_cache" in names else {}
    pasts: WeakKeyDictionary[KeyValueCache, Any] = WeakKeyDictionary()

    def whole(ids: Tensor) -> Tensor:
        with _computing(path, ids):
            return _logits(model(input_ids=ids, **uncached), path)

    def cached(ids: Tensor, cache: KeyValueCache = NO_CACHE) -> Tensor:
        with _computing(path, ids):
            past = pasts.get(cache)
            found = model(input_ids=ids, past_key_values=past, use_cache=True, **last)
            pasts[cache] = found.past_key_values
            return _logits(found, path)

    caches = "past_key_values" in names
    return LanguageModel(path, "transformers", cached if caches else whole, whole)


def _from_pretrained(path: Path) -> Any:
    try:
        import tpack.hf  # noqa: F401 -- lets transformers load packed folders
    except ImportError as error:
        raise UnsupportedError(str(error)) from error
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        options = {"trust_remote_code": False, "local_files_only": True}
        config = AutoConfig.from_pretrained(path, **options)
        config._attn_implementation = None  # may name a kernel to download  # noqa: SLF001
        model, told = AutoModelForCausalLM.from_pretrained(
            path, config=config, output_loading_info=True, **options
        )
    except TpackError:
        raise
    except Exception as error:
        raise InputError(f"cannot be loaded by transformers: {_first_line(error)}") from error
    if missing := sorted(told["missing_keys"]):
        raise InputError(
            f"has no {missing[0]}, one of {len(missing)} tensors that {type(model).__name__} needs "
            "and transformers would fill with random numbers. Its config.json belongs to another "
            "model."
        )
    return model.eval()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from printing what it does while it loads a model."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _computing(path: Path, ids: Tensor) -> Iterator[None]:
    """Turn what torch says about tokens that a model cannot take into an error of the model.

    Raises:
        InputError: a token has too high a number, or the model takes other sizes only.
    """
    try:
        yield
    except (TpackError, NotImplementedError):
        raise
    except IndexError as error:
        raise InputError(
            f"has no token {int(ids.max())}, or not as many positions as are asked for, expected "
            "the tokens of its own tokenizer, and fewer of them.",
            file=path,
        ) from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"cannot compute {plural(ids.shape[1], 'token')}: {_first_line(error)} It may have "
            "been captured with sizes that are fixed: convert it with dynamic_shapes, or the "
            "folder of transformers that it is from.",
            file=path,
        ) from error


def _logits(found: Any, path: Path) -> Tensor:
    """Return logits (1, length, vocabulary) from what a model returned.

    Raises:
        UnsupportedError: there are none.
        InputError: they are NaN.
    """
    if isinstance(found, Mapping):
        found = found.get("logits", next(iter(found.values())) if len(found) == 1 else None)
    found = found[0] if isinstance(found, tuple | list) and found else found
    if not isinstance(found, Tensor) or found.dim() != 3 or not found.is_floating_point():
        raise UnsupportedError(
            "gives no logits (batch, length, vocabulary), expected a decoder with its output head, "
            "such as LlamaForCausalLM.",
            file=path,
        )
    if found[0, -1].isnan().any():
        raise InputError(
            "gives NaN for the next token. Its weights are not those of a model that was trained, "
            "or overflow in their dtype.",
            file=path,
        )
    return found


def _first_line(error: Exception) -> str:
    """Return the first line of a message, as a sentence."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return line if line.endswith((".", "!", "?")) else f"{line}."
