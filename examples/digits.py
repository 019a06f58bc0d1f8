"""Train a ternary MLP and CNN on scikit-learn's digits, and take them all the way.

Each model is trained with a straight-through estimator, saved as ``model.pt``, converted,
verified, regenerated as source and loaded through that source. Its test accuracy and every
single prediction must be the same before and after. Needs no network; about ten seconds.

    python examples/digits.py
"""

from tpack.demo import main

if __name__ == "__main__":
    main()
