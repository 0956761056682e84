"""One prompt, streamed. Run: python examples/single_prompt.py ["a question"]"""

import sys

from octavo import LLM, SamplingParams

question = sys.argv[1] if len(sys.argv) > 1 else "What is the capital of Italy? Answer in one sentence."

with LLM("smollm2-135m") as llm:
    messages = [{"role": "user", "content": question}]
    for piece in llm.stream(messages, SamplingParams(temperature=0, max_tokens=128)):
        print(piece.text, end="", flush=True)
    print()
