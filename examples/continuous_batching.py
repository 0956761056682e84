"""Many prompts of different lengths share each step; watch requests enter and leave the batch.

Each line is one step (every 10th is shown): a letter for each running request, in its row of the batch. A capital
letter computes a piece of its prompt, a small one its next token. When one ends, another takes its row in the very next
steps: no request waits for the longest of a group.

Run: python examples/continuous_batching.py
"""

from octavo import LLM, SamplingParams

PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "A haiku about the sea:",
    "List three prime numbers:",
    "The best thing about Mondays is",
    "To bake bread you need",
    "Dear diary, today",
    "In the year 3000,",
    "The opposite of up is",
    "A short proof that there are infinitely many primes:",
]
ROWS = 4


def main() -> None:
    with LLM("smollm2-135m", max_num_seqs=ROWS) as llm:
        names: dict[str, str] = {}
        running: dict[int, str] = {}
        lengths = [8 + 11 * (i * 7 % 10) for i in range(len(PROMPTS))]

        def show(plan, events):
            if plan is None:
                return
            running.update({row.slot: row.request_id for row in plan.entering})
            rows = ["."] * ROWS
            for row in plan.rows:
                letter = names[running[row.slot]]
                rows[row.slot] = letter.upper() if row.num_tokens > 1 else letter
            if plan.step % 10 == 0 or plan.entering:
                print(f"step {plan.step:3}  {' '.join(rows)}  {llm.engine.scheduler.stats().waiting} waiting")

        llm.engine.listeners.append(show)
        for letter, prompt, length in zip("abcdefghij", PROMPTS, lengths, strict=True):
            params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
            names[llm.engine.add_request(prompt, params)] = letter

        while llm.engine.has_unfinished_requests():
            for output in llm.engine.step():
                if output.finished:
                    text = " ".join(output.outputs[0].text.split())
                    print(f"          {names[output.request_id]} ends: {output.prompt} … {text[:60]}")


if __name__ == "__main__":
    main()
