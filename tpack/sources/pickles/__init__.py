"""Pickles of torch, read as data: no code of a file can run.

A pickle is a program for a small machine, which can import a name and call what is found
there. ``machine`` is a machine of our own without them: it knows a closed table of names
(``building``) that become numbers, containers and records of tensors by functions of tpack, and
makes an inert ``Placeholder`` of every other. ``files`` finds the pickle and the bytes of the
tensors in a file of torch.
"""
