"""Fixtures of the tests of quantizers."""

import pytest

import tpack.quantize


@pytest.fixture(params=[False, True], ids=["whole", "blocks"])
def blocks(request, monkeypatch):
    """Every test runs with the usual block size and with blocks of a row or two."""
    if request.param:
        monkeypatch.setattr(tpack.quantize.pieces, "BLOCK", 64)
        monkeypatch.setattr(tpack.quantize.methods, "BLOCK", 3)
