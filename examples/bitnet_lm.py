"""Train a tiny BitNet language model, pack it, and let it write.

The model is transformers' BitNet (Ma et al. 2024, arXiv:2402.17764) with two layers: ternary
weights, activations rounded to int8. Letter by letter it learns the prose of Python's own help.
Its masters are floats, trained through straight-through estimators; ``tpack convert`` packs the
trits that it computes with. transformers loads the packed folder, which computes and writes what
the trained model does. Needs transformers and no network; under a minute on two cores.

    python examples/bitnet_lm.py [FOLDER]

With a folder, the trained model and its tokenizer stay there, for commands of your own.
"""

import re
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    BitNetForCausalLM,
    BitNetQuantConfig,
    PreTrainedTokenizerFast,
)
from transformers.integrations.bitnet import AutoBitLinear, WeightQuant
from transformers.utils.logging import disable_progress_bar

import tpack
import tpack.hf  # lets transformers load packed folders

#: Letters of a sequence, sequences of a step, and steps of the training.
LENGTH, BATCH, STEPS = 128, 8, 400
#: Letters at the end of the text that are not trained on.
HELD_OUT = 16 * 1024
PROMPT = "The statement "


def read_text() -> str:
    """The paragraphs of prose in Python's help, one a line."""
    pages = "\n\n".join(topics.values())
    paragraphs = (" ".join(one.split()) for one in re.split(r"\n\s*\n", pages))
    return "\n".join(one for one in paragraphs if re.fullmatch(r"[A-Z][ -~]{80,}[.:]", one))


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for every letter of the text."""
    alphabet = sorted(set(text))
    letters = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(alphabet)}, " "))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters)


def make_model(letters: int) -> BitNetForCausalLM:
    """A model whose linear layers, but for the head, are ternary as they run."""
    config = BitNetConfig(
        vocab_size=letters,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=None,
    )
    model = BitNetForCausalLM(config)
    for path, layer in list(model.model.named_modules()):
        if isinstance(layer, nn.Linear):
            sizes = layer.in_features, layer.out_features
            model.model.set_submodule(path, AutoBitLinear(*sizes, bias=False, online_quant=True))
    quantization = BitNetQuantConfig(linear_class="autobitlinear", quantization_mode="online")
    config.quantization_config = quantization.to_dict()
    return model


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Nats for each letter after the first of every row."""
    logits = model(ids).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def train(model: nn.Module, ids: Tensor, steps: int) -> None:
    """Train the ternary matrices with Muon, and the rest with Adam."""
    matrices = [layer.weight for layer in model.modules() if isinstance(layer, AutoBitLinear)]
    others = [one for name, one in model.named_parameters() if "proj" not in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.04, weight_decay=0.0),
        torch.optim.Adam(others, lr=4e-3, betas=(0.9, 0.95)),
    ]
    # a short warm-up, then down to nothing over the second half
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            one, lambda step: min((step + 1) / 20, 2 - 2 * step / steps, 1)
        )
        for one in optimizers
    ]
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(ids) - LENGTH, (BATCH, 1))
        loss = loss_of(model, ids[starts + torch.arange(LENGTH)])
        model.zero_grad()
        loss.backward()
        for one in (*optimizers, *schedules):
            one.step()
    model.eval()


def trits_packed(model: nn.Module, folder: Path) -> tuple[int, int]:
    """How many matrices are packed as the model computes with them, and how many there are."""
    packed = tpack.unpack(folder)
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, AutoBitLinear)]
    same = [
        torch.equal(packed[f"{path}.weight"].sign(), WeightQuant.apply(layer.weight).sign())
        for path, layer in layers
    ]
    return sum(same), len(same)


def write(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> str:
    """What a model writes after the prompt."""
    torch.manual_seed(1)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    options = {"max_new_tokens": 240, "do_sample": True, "temperature": 0.5, "pad_token_id": 0}
    return tokenizer.decode(model.generate(ids, **options)[0])


def teach(
    folder: Path, text: str, steps: int = STEPS
) -> tuple[nn.Module, PreTrainedTokenizerFast, Tensor]:
    """Train a model on a text, and save it; also returns the tokens of the text."""
    torch.manual_seed(0)
    torch.compiler.set_stance("force_eager")  # compiling would take longer than the training
    tokenizer = make_tokenizer(text)
    ids = torch.tensor(tokenizer(text).input_ids)
    model = make_model(len(tokenizer))
    train(model, ids[:-HELD_OUT], steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer, ids


def main(folder: Path, packed_folder: Path) -> None:
    """Train, save, convert, load, compare, write."""
    text = read_text()
    model, tokenizer, ids = teach(folder, text)
    learned, held_out = ids[:-HELD_OUT], ids[-HELD_OUT:].view(-1, LENGTH)

    # the folder holds the masters: packed is what the model makes of them whenever it runs
    report = tpack.convert(folder, packed_folder)
    packed = AutoModelForCausalLM.from_pretrained(packed_folder)

    same, matrices = trits_packed(model, packed_folder)
    print(f"packed: {same} of {matrices} matrices have the trits of the trained model")
    print(f"size: {report.input_bytes} → {report.output_bytes} bytes")

    counts = torch.bincount(learned, minlength=len(tokenizer)) + 1.0
    guess = F.cross_entropy(counts.log().expand(held_out.numel(), -1), held_out.flatten())
    with torch.no_grad():
        loss, packed_loss = loss_of(model, held_out), loss_of(packed, held_out)
        logits, packed_logits = model(held_out).logits, packed(held_out).logits
    agree = (logits.argmax(-1) == packed_logits.argmax(-1)).float().mean()
    print(
        f"loss per letter: {guess:.3f} by frequency, {loss:.3f} trained, {packed_loss:.3f} packed"
    )
    # a sum that is rounded otherwise can move an activation to the next of its int8 values
    difference = (logits - packed_logits).abs().max() / logits.abs().max()
    print(f"predictions: {agree:.2%} the same, logits within {difference:.1e} of the largest")

    written = write(packed, tokenizer)
    words = re.findall("[A-Za-z]{3,}", written.removeprefix(PROMPT))
    vocabulary = set(re.findall("[A-Za-z]+", text))
    known = sum(word in vocabulary for word in words) / len(words)
    whose = "the same as" if written == write(model, tokenizer) else "not as"
    print(f"written, {known:.0%} of it words of the text, {whose} the trained model:\n\n{written}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # layers this small are slower on several
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(sys.argv[1] if len(sys.argv) > 1 else f"{temporary}/bitnet")
        main(kept, Path(temporary) / "packed")
