"""Every row of the table of ONNX ops against the examples that onnx itself has for each op."""

from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.backend.test.case.node import collect_testcases

from tpack.capturing.onnx_graphs.module import GraphModule
from tpack.errors import TpackError
from tpack.sources.onnx_files import OnnxGraph
from tpack.sources.onnx_files.model import load_model

#: Of equal numbers, which comes first is not said.
TIES = {"test_top_k_same_values", "test_top_k_same_values_2d", "test_top_k_same_values_largest"}


def computed(case, path):
    """What the row gives; None if it refuses the example."""
    onnx.save(case.model, path)
    with closing(load_model(Path(path))) as model:
        return results(OnnxGraph(model), case.data_sets[0][0])


def results(graph, given):
    tensors = {
        name: torch.from_numpy(np.array(one.read(0, one.numel).reshape(one.shape)))
        for name, one in graph.source().tensors.items()
    }
    names = {name: f"x{i}" for i, name in enumerate(graph.nodes.inputs)}
    inputs = []
    for value in map(np.asarray, given):
        known = value.ndim == 0 or (value.dtype.kind in "iu" and value.ndim == 1)
        inputs.append(value if known else torch.from_numpy(value.copy()))
    with torch.no_grad():
        found = GraphModule(graph, tensors, names).compute(inputs)
    return found if isinstance(found, tuple) else (found,)


def same(found, expected):
    return all(
        one.numpy().dtype == np.asarray(other).dtype
        and one.shape == np.asarray(other).shape
        and np.allclose(one.numpy(), other, rtol=1e-3, atol=1e-4, equal_nan=True)
        for one, other in zip(found, expected, strict=False)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_row_gives_another_result_than_the_examples_of_onnx(tmp_path):
    right, wrong = 0, []
    for case in collect_testcases(None):
        if case.model is None or case.name in TIES:
            continue
        try:
            found = computed(case, tmp_path / "model.onnx")
        except (TpackError, TypeError, ValueError):  # outside; inputs that torch does not have
            continue
        if same(found, case.data_sets[0][1]):
            right += 1
        else:
            wrong.append(case.name)
    assert not wrong
    assert right > 750
