"""The command line, installed as ``tpack.cli``: each command parses, calls the library, prints."""
