"""x"""

import pytest
from verified_files import STATE

import tpack


@pytest.fixture(params=["t2", "t5"])
def file(request, tmp_path):
    path = tmp_path / "m.safetensors"
    tpack.convert(STATE, path, layout=request.param)
    return path
