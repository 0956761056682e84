"""The CPU backend: what it does better than the reference."""
