"""The engine in another process: the verbs, what goes over the wire, and the process' life. No torch."""
