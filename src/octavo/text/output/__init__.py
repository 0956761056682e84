"""What a model writes, told apart: reasoning, answer, tool calls."""
