"""Write ``docs/llama.md`` anew: the source of a Llama of thirty layers, captured and packed."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from tpack.capturing import trace_module
from tpack.codegen import generate_pytorch_code
from tpack.layerdef import Program

PAGE = Path(__file__).parent.parent / "docs" / "llama.md"
LAYERS = 30
_HEAD = """\
# The source of a captured model

For whoever wants to see what `tpack codegen` prints for a real model. It was a Llama of
transformers with {layers} layers, captured by `tpack.convert(model, path, example_args=(ids,))`,
with its linear weights packed. The source below comes from the checkpoint alone;
`tests/llama_page.py` writes this page.

The forward takes a cache of keys and values, which may be left out. With one, each call computes
the tokens that it is given, after those of the calls before; `tpack.generate` calls it so.
`generate_pytorch_code(program, standalone=True)` prints `KeyValueCache` too.

```python
{source}```
"""


def program() -> Program:
    """The LayerDefs of a small model of that many layers."""
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    packed = [name for name in model.state_dict() if name.endswith("_proj.weight")]
    return trace_module(model, (torch.ones(2, 8, dtype=torch.int64),), None, None).program(packed)


def page() -> str:
    """The text of the page."""
    return _HEAD.format(layers=LAYERS, source=generate_pytorch_code(program()))


if __name__ == "__main__":
    PAGE.write_text(page())
