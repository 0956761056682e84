"""The core: which tokens are computed when, and in which blocks. Pure Python: no torch, no I/O, no clock."""
