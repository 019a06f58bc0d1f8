"""The command line; installs as ``tpack.cli``. Each command: parse, one library call, print."""
