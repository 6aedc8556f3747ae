"""Training a motion tokenizer: ``accelerate launch -m motion.train``."""
