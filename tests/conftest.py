"""What the tests of all folders share: how hypothesis draws, and fixtures."""

import pytest
from hypothesis import HealthCheck, settings

from tpack import kernels
from tpack.cli.main import main

settings.register_profile(
    "tpack",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("tpack")


@pytest.fixture(scope="module")
def plain_torch():
    """Compute without kernels, which may round differently: for tests that compare bit for bit."""
    with kernels.forced("numpy"):
        yield


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process: code, stdout, stderr."""
    monkeypatch.delenv("TPACK_DEBUG", raising=False)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return call


#: They are loaded, but have no doctests: collecting several of one name would fail.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]
#: Each imports the system that it calls, which only its own environment has.
collect_ignore = ["other_quantizers"]
