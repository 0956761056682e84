"""Structured output: grammars are checked, compiled, and say which tokens may come next. The parser is llguidance."""
