"""Features of motion, which networks see: a row of numbers for each frame, and the way back."""
