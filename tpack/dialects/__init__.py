"""The bytes of other systems' ternary weights: each dialect's codes ↔ rows in layout t2.

Pure functions on numpy arrays, block by block; what a dialect's scales and names mean is the
affair of ``sources`` and ``exporting``.
"""
