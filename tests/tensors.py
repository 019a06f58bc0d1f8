"""Random tensors, the same for the same seed."""

import torch


def trits(*shape, seed=0):
    """Random trits, float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, shape, generator=generator).float()


def ternary(*shape, seed=0, scale=0.05):
    """A weight of random trits that share a scale, float32."""
    return trits(*shape, seed=seed) * scale


def noise(*shape, seed=0):
    """A weight that is not ternary, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
