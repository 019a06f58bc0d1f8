"""The main job on real data: train, convert, verify, regenerate, run, compare.

``tpack demo`` and ``examples/digits.py`` are this.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tpack.checkpoint import load
from tpack.codegen import generate_pytorch_code
from tpack.container import Checkpoint
from tpack.conversion import convert
from tpack.errors import UnsupportedError
from tpack.layerdef import (
    Assignment,
    Expression,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Statement,
)
from tpack.verification import verify


def ternary_values(weight: Tensor) -> Tensor:
    """The weight in {-s, 0, +s} that stands in for a float weight; s is the mean of |w|."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1) * scale


def ternarize(weight: Tensor) -> Tensor:
    """The ternary values, with the gradient of the float weight (straight-through)."""
    return weight + (ternary_values(weight) - weight).detach()


class Linear(nn.Linear):
    """A linear layer trained to be ternary."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return F.linear(x, ternarize(self.weight), self.bias)


class Conv2d(nn.Conv2d):
    """A convolution trained to be ternary."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) → (batch, out, h, w)."""
        return F.conv2d(x, ternarize(self.weight), self.bias, self.stride, self.padding)


class Mlp(nn.Module):
    """64 pixels → 10 digits, with layers that learn to be ternary, or with plain ones."""

    def __init__(self, linear: type[nn.Linear] = Linear) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = linear(64, 256), linear(256, 128), linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 64) → logits (batch, 10)."""
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))  # type: ignore[no-any-return]


class Cnn(nn.Module):
    """An 8×8 image → 10 digits, likewise."""

    def __init__(self, linear: type[nn.Linear] = Linear, conv: type[nn.Conv2d] = Conv2d) -> None:
        super().__init__()
        self.conv1 = conv(1, 32, 3, padding=1)
        self.conv2 = conv(32, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.fc = linear(64 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 8, 8) → logits (batch, 10)."""
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.norm(self.conv2(x))), 2)
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]


def _op(name: str, *args: Expression, **kwargs: int) -> FunctionCall:
    return FunctionCall(name, args, {key: Literal(value) for key, value in kwargs.items()})


def mlp_program() -> Program:
    """The LayerDefs of ``Mlp``: what a state dict does not tell."""
    sizes = {"fc1": (64, 256), "fc2": (256, 128), "fc3": (128, 10)}
    layers = [
        Param(name, "Layer", layer="TernaryLinear", args={"in_features": i, "out_features": o})
        for name, (i, o) in sizes.items()
    ]
    x = Identifier("x")
    body: list[Statement] = [
        Assignment("x", _op("relu", LayerCall("fc1", [x]))),
        Assignment("x", _op("relu", LayerCall("fc2", [x]))),
        Return(LayerCall("fc3", [x])),
    ]
    return Program([LayerDef("Mlp", [*layers, Param("x", "Tensor")], body)], "Mlp")


def cnn_program() -> Program:
    """The LayerDefs of ``Cnn``."""
    conv = {"kernel_size": 3, "padding": 1}
    layers = [
        Param(
            "conv1",
            "Layer",
            layer="TernaryConv2d",
            args={"in_channels": 1, "out_channels": 32, **conv},
        ),
        Param(
            "conv2",
            "Layer",
            layer="TernaryConv2d",
            args={"in_channels": 32, "out_channels": 64, **conv},
        ),
        Param("norm", "Layer", layer="BatchNorm2d", args={"num_features": 64}),
        Param("fc", "Layer", layer="TernaryLinear", args={"in_features": 1024, "out_features": 10}),
    ]
    x = Identifier("x")
    body: list[Statement] = [
        Assignment("x", _op("relu", LayerCall("conv1", [x]))),
        Assignment("x", _op("relu", LayerCall("norm", [LayerCall("conv2", [x])]))),
        Assignment("x", _op("max_pool2d", x, kernel_size=2)),
        Return(LayerCall("fc", [_op("flatten", x, start_dim=1)])),
    ]
    return Program([LayerDef("Cnn", [*layers, Param("x", "Tensor")], body)], "Cnn")


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        accuracy: on the test images, of the trained model.
        packed_accuracy: of the model loaded through its regenerated source.
        changed: predictions that differ between the two.
        lossless: whether ``verify`` found the file equal to the trained weights.
        float_bytes: size of ``model.pt``.
        packed_bytes: size of the checkpoint.
    """

    name: str
    accuracy: float
    packed_accuracy: float
    changed: int
    lossless: bool
    float_bytes: int
    packed_bytes: int


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 64) in [0, 1] and labels: for training, then for testing.

    Raises:
        UnsupportedError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UnsupportedError(
            "the demo needs the package scikit-learn for its data. Install it: "
            'pip install "tpack-ternary[demo]".'
        ) from error
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train with Adam and a falling step size."""
    batches = -(-len(labels) // 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def freeze_ternary(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that a trained model computes with: its weights ternary, as floats."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, Linear | Conv2d):
            state[f"{name}.weight"] = ternary_values(module.weight.detach())
    return state


def take_through(
    plain: nn.Module,
    program: Program,
    images: Tensor,
    labels: Tensor,
    folder: Path,
    say: Callable[[str], Any],
) -> Outcome:
    """Convert, verify, regenerate and run a trained model; compare every prediction."""
    name = program.root.lower()
    source = folder / f"{name}.pt"
    torch.save(plain.state_dict(), source)
    description = folder / f"{name}.layerdef.json"
    description.write_text(json.dumps(program.to_dict()))
    packed = folder / f"{name}.tpack.safetensors"
    report = convert(source, packed, exact=True, layerdef=description, force=True)
    lossless = verify(packed, source).lossless
    with Checkpoint(packed) as file:
        assert file.document.program is not None
        code = generate_pytorch_code(file.document.program)
    (folder / f"{name}.py").write_text(code)

    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102  # our own output, as a user would import it
    regenerated = namespace[program.root]()
    regenerated.load_state_dict(load_file(packed), strict=True)
    regenerated.eval()
    with torch.no_grad():
        before = plain(images).argmax(1)
        after = regenerated(images).argmax(1)
        loaded = load(packed)(images).argmax(1)
    changed = int((before != after).sum() + (before != loaded).sum())
    outcome = Outcome(
        program.root,
        float((before == labels).float().mean()),
        float((after == labels).float().mean()),
        changed,
        lossless,
        source.stat().st_size,
        report.output_bytes,
    )
    say(
        f"{outcome.name}: accuracy {outcome.accuracy:.2%} trained, {outcome.packed_accuracy:.2%} "
        f"packed, {changed} of {len(labels)} predictions changed, "
        f"{'lossless' if lossless else 'NOT LOSSLESS'}, {outcome.float_bytes} → "
        f"{outcome.packed_bytes} bytes"
    )
    return outcome


def run(folder: Path, say: Callable[[str], Any] = print) -> list[Outcome]:
    """Run the demo in a folder, which keeps what it makes."""
    torch.manual_seed(0)
    train_images, train_labels, images, labels = digits()
    mlp, cnn = Mlp(), Cnn()
    say(f"training on {len(train_labels)} images of digits, testing on {len(labels)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small are slower on several, by far where cores are busy
    train(mlp, train_images, train_labels, epochs=40)
    train(cnn, train_images.view(-1, 1, 8, 8), train_labels, epochs=20)
    torch.set_num_threads(threads)
    plain_mlp, plain_cnn = Mlp(nn.Linear), Cnn(nn.Linear, nn.Conv2d)
    plain_mlp.load_state_dict(freeze_ternary(mlp))
    plain_cnn.load_state_dict(freeze_ternary(cnn))
    return [
        take_through(plain_mlp, mlp_program(), images, labels, folder, say),
        take_through(
            plain_cnn.eval(), cnn_program(), images.view(-1, 1, 8, 8), labels, folder, say
        ),
    ]


def main() -> None:
    """Run the demo in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
