"""The tokenizer of a bundle: a SentencePiece model where one can say the same, else tokenizer.json.

It imports nothing by itself: the process that converts a tokenizer comes through here, and has to stay small.
"""
