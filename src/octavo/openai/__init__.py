"""OpenAI's formats for text: what a request body may say, and what an answer looks like. Values only, no torch."""
