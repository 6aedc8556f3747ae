"""Evaluating a motion tokenizer: figures, tables and a page."""
