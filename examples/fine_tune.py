"""Fine-tune packed models: damage them, train float masters, pack them again.

Takes the digits models of ``tpack demo``, replaces 30 % of their trits by random ones, and
trains them back with a straight-through estimator. Needs no network; half a minute, most of it
for the demo.

    python examples/fine_tune.py
"""

import math
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpack
from tpack.demo import digits, run as run_demo
from tpack.nn import PackedModule, freeze, unfreeze


def damage(model: nn.Module, share: float) -> None:
    """Replace a share of the trits of every packed weight by random ones."""
    for owner in model.modules():
        if isinstance(owner, PackedModule):
            for name, shape in owner.ternary_shapes.items():
                trits = tpack.unpack_ternary(getattr(owner, f"{name}_packed"), math.prod(shape))
                chosen = torch.rand(trits.shape) < share
                trits[chosen] = torch.randint(-1, 2, trits.shape, dtype=torch.int8)[chosen]
                setattr(owner, f"{name}_packed", tpack.pack_ternary(trits))


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose digit is found."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 20) -> None:
    """Train what an optimizer finds in the model: the masters, biases and norms."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    model.eval()


def main(folder: Path) -> None:
    """Take both models in a folder through it; the demo makes them where they are missing."""
    if not (folder / "mlp.tpack.safetensors").exists():
        run_demo(folder)
    torch.manual_seed(0)
    train_images, train_labels, images, labels = digits()
    for name, shape in (("mlp", (-1, 64)), ("cnn", (-1, 1, 8, 8))):
        train_set, test_set = train_images.view(shape), images.view(shape)
        model = tpack.load(folder / f"{name}.tpack.safetensors")
        before = accuracy(model, test_set, labels)
        damage(model, 0.3)
        damaged = accuracy(model, test_set, labels)

        unfreeze(model)
        train(model, train_set, train_labels)
        freeze(model)

        path = folder / f"{name}-tuned.tpack.safetensors"
        tpack.save(model, path, force=True)
        report = tpack.verify(path)
        after = accuracy(tpack.load(path), test_set, labels)
        print(
            f"{name}: accuracy {before:.2%} packed, {damaged:.2%} damaged, {after:.2%} fine-tuned "
            f"and packed again, {'verified' if report.ok else report.problems}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)  # layers this small are slower on several
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
