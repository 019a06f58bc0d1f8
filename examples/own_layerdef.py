"""Describe a layer of your own as a LayerDef, train it, pack it, and read it back.

The layer is a gated residual block with three ternary matrices; a classifier of digits stacks
two of them. It is built from the tree, trained with a straight-through estimator, packed into a
file, loaded from that file, and printed as source that needs only torch: every prediction stays
the same. Needs no network; about ten seconds.

    python examples/own_layerdef.py
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import tpack
from tpack.build import build_module
from tpack.container import Checkpoint
from tpack.demo import digits
from tpack.layerdef import (
    Assignment,
    BinaryOp,
    FunctionCall,
    Identifier,
    LayerCall,
    LayerDef,
    Literal,
    Param,
    Program,
    Return,
    Tuple,
)
from tpack.nn import freeze, unfreeze

WIDTH, HIDDEN = 64, 128
x, normed, gate = Identifier("x"), Identifier("normed"), Identifier("gate")


def linear(value: Identifier, weight: str) -> FunctionCall:
    """``F.linear(value, self.weight)``; every op is in docs/layerdef.md."""
    return FunctionCall("linear", [value, Identifier(weight)])


# x + w_down(silu(w_gate(norm(x))) * w_up(norm(x))), with one scale for each row of a matrix
block = LayerDef(
    "GatedBlock",
    [
        Param("norm", "Tensor", [WIDTH]),
        Param("w_gate", "TernaryTensor", [HIDDEN, WIDTH], scale="row"),
        Param("w_up", "TernaryTensor", [HIDDEN, WIDTH], scale="row"),
        Param("w_down", "TernaryTensor", [WIDTH, HIDDEN], scale="row"),
        Param("x", "Tensor"),
    ],
    [
        Assignment(
            "normed", FunctionCall("rms_norm", [x, Tuple([Literal(WIDTH)]), Identifier("norm")])
        ),
        Assignment("gate", FunctionCall("silu", [linear(normed, "w_gate")])),
        Assignment("gate", BinaryOp("*", gate, linear(normed, "w_up"))),
        Return(BinaryOp("+", x, linear(gate, "w_down"))),
    ],
)
classifier = LayerDef(
    "Classifier",
    [
        Param("blocks", "Layer", layer="GatedBlock", repeat=2),
        Param("head", "Layer", layer="Linear", args={"in_features": WIDTH, "out_features": 10}),
        Param("x", "Tensor"),
    ],
    [Return(LayerCall("head", [LayerCall("blocks", [x])]))],
)
program = Program([block, classifier], root="Classifier")


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 15) -> None:
    """Train the masters of all ternary weights, and what is not ternary, from random values."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.kaiming_uniform_(parameter, a=5**0.5)
        else:
            nn.init.ones_(parameter)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def main(folder: Path) -> None:
    """Take the classifier through it."""
    print(tpack.generate_pytorch_code(block))
    torch.manual_seed(0)
    train_images, train_labels, images, labels = digits()

    model = build_module(program)
    train(unfreeze(model), train_images, train_labels)
    path = folder / "classifier.tpack.safetensors"
    tpack.save(freeze(model), path)

    # the file carries the tree: a module and its source come from it alone
    loaded = tpack.load(path)
    with Checkpoint(path) as file:
        source = tpack.generate_pytorch_code(file.document.program, standalone=True)
    namespace: dict[str, type[nn.Module]] = {}
    exec(source, namespace)  # noqa: S102  # the source is our own
    printed = namespace["Classifier"]()
    printed.load_state_dict(load_file(path), strict=True)

    with torch.no_grad():
        trained = model(images).argmax(1)
        changed = [int((other(images).argmax(1) != trained).sum()) for other in (loaded, printed)]
    accuracy = (trained == labels).float().mean()
    print(f"accuracy {accuracy:.2%}, {path.stat().st_size} bytes")
    print(f"predictions changed: {changed[0]} loaded, {changed[1]} printed as source")


if __name__ == "__main__":
    torch.set_num_threads(1)  # layers this small are slower on several
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
