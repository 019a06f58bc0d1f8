"""Packed models in transformers: importing this module lets ``from_pretrained`` load them.

After ``import tpack.hf``, ``AutoModelForCausalLM.from_pretrained(folder)``, or any other class,
takes a folder that ``tpack convert`` made of a transformers model. Its packed layers become
modules of ``tpack.nn`` and stay packed; ``save_pretrained`` writes such a folder again.

``replacement`` puts the packed modules into a model, ``layers`` has modules that only models of
transformers need, ``saving`` writes folders, ``describing`` describes a model for it,
``quantizer`` has the classes that transformers calls, and ``guarding`` makes it refuse packed files
that it would load as plain ones.
"""

try:
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
except ImportError as error:
    raise ImportError(
        'tpack.hf needs transformers 5 or newer. Install it: pip install "tpack-ternary[hf]".'
    ) from error

from tpack.hf.guarding import refuse_unnoticed
from tpack.hf.quantizer import TpackConfig, TpackQuantizer
from tpack.hfconfig import METHOD

__all__ = ["TpackConfig", "TpackQuantizer"]

register_quantization_config(METHOD)(TpackConfig)
register_quantizer(METHOD)(TpackQuantizer)
refuse_unnoticed()
