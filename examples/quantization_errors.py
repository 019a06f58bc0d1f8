"""Measure what each method loses on weights of the digits models, and on a Gaussian.

Trains an MLP and a CNN twice, once to be ternary (quantization-aware) and once as usual, and
prints a table: the relative error of one weight of each, and the accuracy on test images that is
left when all its weights are packed. Needs no network; half a minute.

    python examples/quantization_errors.py [PAGE]

With a page, its block between the two markers is replaced: how docs/quantization.md is made.
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import tpack
from tpack.demo import Cnn, Mlp, digits, train
from tpack.quantize import METHODS, Weight, encode, fit

BEGIN, END = "<!-- generated: errors -->", "<!-- end -->"
SCALES = ("tensor", "row", "group:64")
#: Each model, the weight whose error is shown, and the input that it takes.
MODELS = {"MLP": (Mlp, "fc2.weight", (-1, 64)), "CNN": (Cnn, "conv2.weight", (-1, 1, 8, 8))}


def trained(name: str, *, ternary: bool) -> nn.Module:
    """A model trained to be ternary, or as usual."""
    torch.manual_seed(0)
    images, labels, _, _ = digits()
    make, _, shape = MODELS[name]
    usual = (nn.Linear, nn.Conv2d)[: 1 if make is Mlp else 2]
    model = make() if ternary else make(*usual)
    train(model, images.view(shape), labels, epochs=20)
    return model


def error(weight: Tensor, method: str, scale: str) -> float:
    """‖w - s·q‖ / ‖w‖ of a weight packed by a method."""
    values = Weight.of(weight.detach().numpy())
    return encode(values, fit(values, method, scale)).relative_error


def accuracy_packed(model: nn.Module, name: str, method: str, scale: str) -> float:
    """The accuracy on the test images when every weight is packed by a method."""
    _, _, images, labels = digits()
    make, _, shape = MODELS[name]
    plain = make(nn.Linear) if make is Mlp else make(nn.Linear, nn.Conv2d)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.tpack.safetensors"
        tpack.convert(model.state_dict(), path, quantize=method, scale=scale)
        plain.load_state_dict(tpack.unpack(path))
    return accuracy(plain.eval(), images.view(shape), labels)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose digit is found."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def rows(first: str, weight: Tensor, model: nn.Module | None = None, name: str = "") -> list[str]:
    """The lines of a table for one weight, one for each method."""
    lines = []
    for method in METHODS:
        errors = [f"{error(weight, method, scale):.3f}" for scale in SCALES]
        left = ["" for _ in SCALES]
        if model is not None:
            left = [f"{accuracy_packed(model, name, method, scale):.1%}" for scale in SCALES]
        lines.append(f"| {' | '.join([first, method, *errors, *left])} |")
        first = ""
    return lines


def table() -> str:
    """Errors and accuracies in Markdown."""
    _, _, images, labels = digits()
    heads = [f"{what}, {scale}" for what in ("error", "accuracy") for scale in SCALES]
    lines = [f"| weight | method | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name, (_, key, shape) in MODELS.items():
        for ternary in (True, False):
            model = trained(name, ternary=ternary)
            kind = "trained ternary" if ternary else "trained as usual"
            whole = accuracy(model, images.view(shape), labels)
            first = f"{name} {kind} ({whole:.1%}), {key}"
            lines += rows(first, model.get_parameter(key), model, name)
    sample = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    return "\n".join([*lines, *rows("Gaussian, 512×1024", sample)])


def main() -> None:
    """Print the tables, or write them into a page."""
    torch.set_num_threads(1)  # layers this small are slower on several
    text = f"{BEGIN}\n\n{table()}\n\n{END}"
    if len(sys.argv) == 1:
        print(text)
        return
    page = Path(sys.argv[1])
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    page.write_text(pattern.sub(lambda _: text, page.read_text()))


if __name__ == "__main__":
    main()
