"""Load on an OpenAI-compatible server, ours or another's: what is sent when, what comes back when, and its figures."""
