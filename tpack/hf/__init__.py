"""Packed models in transformers: importing this module lets ``from_pretrained`` load them.

After ``import tpack.hf``, ``AutoModelForCausalLM.from_pretrained(folder)``, or any other class,
takes a folder that ``tpack convert`` made of a transformers model. Its packed layers become
modules of ``tpack.nn`` and stay packed; ``save_pretrained`` writes such a folder again.

``replacement`` puts the modules in, ``layers`` are those that only transformers needs, ``saving``
writes folders, ``quantizer`` is what transformers calls, ``guarding`` what it must not do without.
"""

from transformers.quantizers.auto import register_quantization_config, register_quantizer

from tpack.hf.guarding import refuse_unnoticed
from tpack.hf.quantizer import TpackConfig, TpackQuantizer
from tpack.hfconfig import METHOD

__all__ = ["TpackConfig", "TpackQuantizer"]

register_quantization_config(METHOD)(TpackConfig)
register_quantizer(METHOD)(TpackQuantizer)
refuse_unnoticed()
