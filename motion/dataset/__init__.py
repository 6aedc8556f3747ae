"""A folder of motion to tokens with what describes it, and a reader of these for training."""
