"""The evaluation of an encoder by what a language model reads from its patch tokens."""
