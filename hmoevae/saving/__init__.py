"""Saving: a model on disk and on the Hugging Face Hub, with a card that describes it.

`files` reads and writes the files, `card` makes the README.md, `pretrained` is the base class of models that are saved.
"""
