"""Build models of transformers: without values in their parameters, or with those of a folder."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any
from unittest import mock

import huggingface_hub
import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn import init
from transformers import PreTrainedConfig, PreTrainedModel

from tpack.capturing.torch_export import quiet as torch_quiet
from tpack.errors import LayerDefError

#: Bytes of buffers above which a model is not built: they have values, whatever a config says.
MOST_BUFFERS = 128 << 20


@dataclass(frozen=True)
class Built:
    """A model whose parameters have no values, and the mode that they belong to."""

    model: PreTrainedModel
    mode: FakeTensorMode


def made(mode: FakeTensorMode, shape: Any, dtype: torch.dtype) -> nn.Parameter:
    """Make a parameter without values, on the CPU."""
    with mode:
        return nn.Parameter(torch.empty(shape, dtype=dtype, device="cpu"), requires_grad=False)


def blank(
    kind: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype, limit: int
) -> Built:
    """Build a model in eval mode; its buffers have values, its parameters take no memory.

    A model on the meta device would leave its buffers without values too, unnoticed.

    Args:
        limit: how many parameters it may have.

    Raises:
        LayerDefError: it has more parameters, or large buffers.
    """
    _check_size(kind, config, dtype, limit)
    mode = FakeTensorMode(shape_env=ShapeEnv(tracked_fakes=[]), allow_non_fake_inputs=True)

    def without_values(param: nn.Parameter) -> nn.Parameter:
        return param if isinstance(param, FakeTensor) else made(mode, param.shape, param.dtype)

    with _registering(without_values), _without_drawing():
        model = kind._from_config(copy.deepcopy(config), dtype=dtype)  # noqa: SLF001
    return Built(model.eval(), mode)


def _check_size(
    kind: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype, limit: int
) -> None:
    """Build the model on the meta device, to see that its buffers are small.

    Raises:
        LayerDefError: they are not, or there are more parameters than ``limit``.
    """
    count = 0

    def counted(param: nn.Parameter) -> nn.Parameter:
        nonlocal count
        count += 1
        if count > limit:
            raise LayerDefError(
                f"config.json describes more than {limit} tensors, and the files hold far fewer."
            )
        return param

    with torch.device("meta"), _registering(counted):
        model = kind._from_config(copy.deepcopy(config), dtype=dtype)  # noqa: SLF001
    if (found := sum(one.nbytes for one in model.buffers())) > MOST_BUFFERS:
        raise LayerDefError(
            f"{kind.__name__} has buffers of {found >> 20} MB, too many to build it."
        )


def loaded(
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    values: Mapping[str, Tensor],
    aliases: Mapping[str, str],
) -> PreTrainedModel:
    """Let transformers load values into a model, as ``from_pretrained`` does it."""
    state = {**values, **{alias: values[name] for alias, name in aliases.items()}}
    # copied: a model may change or share what it is given
    state = {name: tensor.clone() for name, tensor in state.items()}
    model: PreTrainedModel = kind.from_pretrained(
        None, config=copy.deepcopy(config), state_dict=state, dtype=dtype
    )
    return model.eval()


@contextmanager
def _registering(change: Any) -> Iterator[None]:
    """Change each parameter as a module takes it."""
    register = nn.Module.register_parameter

    def changed(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, None if param is None else change(param))

    with mock.patch.object(nn.Module, "register_parameter", changed):
        yield


def _without_drawing() -> Any:
    """Leave out the one way of filling a parameter that looks at the numbers that it drew."""
    draw = init._no_grad_trunc_normal_

    def drawn(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        filled = tensor if isinstance(tensor, FakeTensor) else draw(tensor, *args, **options)
        assert isinstance(filled, Tensor)
        return filled

    return mock.patch.object(init, "_no_grad_trunc_normal_", drawn)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers and torch, keep both from compiling, and from any network."""
    talk = transformers.logging
    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    state = torch.random.get_rng_state()
    with ExitStack() as stack:
        stack.callback(torch.random.set_rng_state, state)
        stack.callback(talk.set_verbosity, level)
        stack.callback(talk.enable_progress_bar if bars else talk.disable_progress_bar)
        talk.set_verbosity(logging.CRITICAL)
        talk.disable_progress_bar()
        offline = mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        stack.enter_context(offline)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch_quiet())
        stack.enter_context(redirect_stderr(io.StringIO()))  # torch prints what it traced in vain
        stack.enter_context(torch.no_grad())
        yield
