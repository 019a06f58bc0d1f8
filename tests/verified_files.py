"""Checkpoints to be verified."""

import torch

STATE = {
    "fc.weight": torch.tensor([[0.5, 0, -0.5, 0.5, 0.5], [0, 0, 0.5, -0.5, 0]]),
    "fc.bias": torch.tensor([1.0, 2.0]),
}


def failed(report):
    """(tensor, check) of every check that failed."""
    return {(t.name, check) for t in report.tensors for check, ok in t.checks.items() if not ok}


def masters(seed=0, shape=(8, 96)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
