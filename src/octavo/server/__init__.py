"""The HTTP server: routes, streaming, metrics, health, keys and limits, over an engine in another process."""
