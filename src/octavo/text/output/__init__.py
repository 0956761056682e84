"""What a model writes, told apart while it comes: reasoning, answer, tool calls.

    format = output_format(llm.tokenizer.chat_template)
    router = OutputRouter(format, [Function("clock", {"type": "object", "properties": {}})])
    for news in llm.stream(prompt, with_markers(params, format, llm.tokenizer)):
        for piece in router.feed(news.text): ...
    for piece in router.finish(): ...

A format is a value (`formats`). Its shape (`json_calls`, `named_calls`, `tagged_calls`, `python_calls`) knows how a
call is read, and how a grammar says it (`grammar`), so that a model can be forced to call.
"""
