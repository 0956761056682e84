"""Text to token ids and back: tokenizers, streaming detokenizer, stop strings, chat templates. No torch."""
