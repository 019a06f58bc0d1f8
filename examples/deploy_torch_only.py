"""Run a packed model in a process that has only torch.

Here, where tpack is installed, a classifier of digits is trained and packed; its standalone source
and its packed weights are what is deployed, two files. They run in a second Python that can import
torch and what torch itself depends on, and nothing else: no tpack, no safetensors, no numpy. It
gives the same predictions. Needs no network; about ten seconds.

    python examples/deploy_torch_only.py
"""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import tpack
from tpack.container import Checkpoint
from tpack.demo import Mlp, digits, freeze_ternary, mlp_program, train

#: The whole program that is deployed, beside model.py and weights.pt.
DEPLOYED = """\
import importlib.util

import torch
from model import Mlp

model = Mlp()
model.load_state_dict(torch.load("weights.pt", mmap=True, weights_only=True), strict=True)
model.eval()
images, labels = torch.load("images.pt", weights_only=True)
with torch.no_grad():
    predictions = model(images).argmax(1)
torch.save(predictions, "predictions.pt")

for name in ("tpack", "safetensors", "numpy"):
    print(f"{name}: {'there' if importlib.util.find_spec(name) else 'not there'}")
print(f"packed weights: {model.fc1.weight_packed.dtype}, {tuple(model.fc1.weight_packed.shape)}")
print(f"accuracy: {(predictions == labels).float().mean():.2%}")
"""


def link_torch(folder: Path) -> None:
    """Fill a folder with torch and what it depends on, as links: all that the process will have."""
    folder.mkdir()
    waiting, seen = ["torch"], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another platform
            continue
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
        needed = [line for line in package.requires or () if "extra ==" not in line]
        waiting += [re.match(r"[\w.-]+", line)[0] for line in needed]


def main(folder: Path) -> None:
    """Train, pack, deploy, compare."""
    torch.manual_seed(0)
    train_images, train_labels, images, labels = digits()
    model = Mlp()
    train(model, train_images, train_labels, epochs=10)
    plain = Mlp(nn.Linear)
    plain.load_state_dict(freeze_ternary(model))
    packed = folder / "mlp.tpack.safetensors"
    tpack.convert(plain.state_dict(), packed, exact=True, layerdef=mlp_program())

    # what is deployed; `tpack codegen FILE --standalone` prints the same source
    deployed = folder / "deployed"
    deployed.mkdir()
    with Checkpoint(packed) as file:
        source = tpack.generate_pytorch_code(file.document.program, standalone=True)
    (deployed / "model.py").write_text(source)
    torch.save(load_file(packed), deployed / "weights.pt")
    (deployed / "run.py").write_text(DEPLOYED)
    torch.save((images, labels), deployed / "images.pt")

    # -I and -S: no environment, no user folder, no site-packages
    link_torch(folder / "only_torch")
    start = "import runpy, sys; sys.path[:0] = sys.argv[1:]; runpy.run_path('run.py')"
    options = ["-I", "-S", "-W", "ignore:Failed to initialize NumPy"]
    paths = [str(deployed), str(folder / "only_torch")]
    command = [sys.executable, *options, "-c", start, *paths]
    subprocess.run(command, cwd=deployed, check=True)  # noqa: S603  # our own program

    there = torch.load(deployed / "predictions.pt")
    with torch.no_grad():
        here = plain(images).argmax(1)
    print(f"predictions changed: {int((here != there).sum())} of {len(labels)}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # layers this small are slower on several
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
