"""Fixtures that several folders share."""

import pytest

from tpack import kernels


@pytest.fixture(scope="module")
def plain_torch():
    """Compute without kernels, which may round differently: for tests that compare bit for bit."""
    with kernels.forced("numpy"):
        yield
