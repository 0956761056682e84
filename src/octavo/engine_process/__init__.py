"""The engine's own process: what `octavo.client` starts and talks to."""
