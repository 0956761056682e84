"""One file for each interface: it reads a body, runs it, and writes the answer."""
