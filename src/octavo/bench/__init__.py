"""Measurements: what is run, what is timed, and what it was run on."""
