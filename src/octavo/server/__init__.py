"""The HTTP face: OpenAI's and Anthropic's endpoints over an `EngineClient`; metrics, health, keys, limits. No torch."""
