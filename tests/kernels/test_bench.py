"""``tpack bench``, on sizes small enough for a test."""

import json

import pytest
from click.testing import CliRunner

from tpack import kernels
from tpack.cli.main import cli
from tpack.errors import UnsupportedError
from tpack.kernels import bench

#: transformers, where it is installed, uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


native = pytest.mark.skipif(
    kernels.available() == ["numpy"], reason="the extension was not built: nothing to time"
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", ((64, 96), (40, 128)))
    monkeypatch.setattr(bench, "SQUARE", 128)
    monkeypatch.setattr(bench, "PIECES", 1 << 22)
    monkeypatch.setattr(bench, "STRETCH", 1 << 20)
    monkeypatch.setattr(bench.Bench.__init__, "__defaults__", (None, 31, 1 << 24))


@native
def test_bench_times_every_kernel_against_a_baseline(small):
    result = CliRunner().invoke(cli, ["bench", "--repeats", "3", "--json"], catch_exceptions=False)
    document = json.loads(result.stdout)
    assert document["variant"] == kernels.variant()
    names = " ".join(row["name"] for row in document["rows"])
    for word in ("bit_linear", "linear", "pack", "unpack", "absmean"):
        assert word in names
    for row in document["rows"]:
        assert row["ours"] > 0
        assert row["baseline"] > 0
        assert row["ratio"] > 0


@native
def test_bench_prints_a_row_a_line(small):
    result = CliRunner().invoke(cli, ["bench", "--repeats", "3"], catch_exceptions=False)
    assert result.stdout.startswith(f"kernels: {kernels.variant()} ")
    assert "F.linear" in result.stdout


@pytest.mark.parametrize("missing", ["", "tpack has no compiled kernels: …"])
def test_bench_without_the_extension_says_why(missing, monkeypatch):
    monkeypatch.setattr(kernels.selection, "missing", missing)
    with kernels.forced("numpy"), pytest.raises(UnsupportedError) as raised:
        CliRunner().invoke(cli, ["bench"], catch_exceptions=False, standalone_mode=False)
    assert str(raised.value) == missing or "TPACK_KERNEL=numpy" in str(raised.value)


def test_a_kernel_that_differs_is_not_timed(small, monkeypatch):
    honest = bench.kernels.unpack
    monkeypatch.setattr(bench.kernels, "unpack", lambda *args, **options: -honest(*args, **options))
    with pytest.raises(AssertionError):
        bench.run(repeats=3)
