"""OpenAI batch files: a request a line in, an answer a line out."""
