"""Texts and tokens: the files of a tokenizer, chat templates, tool calls, and the codec over them."""
