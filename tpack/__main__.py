"""``python -m tpack``."""

from tpack.cli.main import main

if __name__ == "__main__":
    main()
