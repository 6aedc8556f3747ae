"""The tokenizer of the package, of a body of 22 joints."""
