"""The HTTP face: OpenAI's and Anthropic's endpoints over an `EngineClient`. No torch."""
