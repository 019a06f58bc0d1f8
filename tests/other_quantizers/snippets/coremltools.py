"""coremltools: ``palettize_weights`` with two bits; the matrix is read back from the program."""

import tempfile
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.optimize.coreml import OpPalettizerConfig, OptimizationConfig, palettize_weights


def quantize(weight, mode):
    x = mb.TensorSpec(shape=(1, weight.shape[1]))

    @mb.program(input_specs=[x], opset_version=ct.target.iOS18)
    def program(x):
        return mb.linear(x=x, weight=weight)

    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
    )
    bits = {} if mode == "unique" else {"nbits": 2}
    config = OptimizationConfig(OpPalettizerConfig(mode=mode, **bits))
    model = palettize_weights(model, config)
    operations = model._mil_program.functions["main"].operations
    op = next(op for op in operations if op.op_type == "constexpr_lut_to_dense")
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/m.mlpackage")
        stored = next(Path(folder).rglob("weight.bin")).read_bytes()
    returned = type(op).decompress(op.indices.val, op.lut.val, None)
    return returned, [np.frombuffer(stored, np.uint8)]
