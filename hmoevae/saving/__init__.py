"""Saving: a model on disk and on the Hugging Face Hub, with the card that says what it is.

`files` reads and writes, `card` words the README.md, `pretrained` is the base class that a model gets its saving from.
"""
