"""The examples as modules, for the tests that run their functions."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    """The module of an example, loaded anew."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import of transformers warns of deprecations
        spec.loader.exec_module(module)
    return module
