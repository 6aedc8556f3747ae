"""What a network sees of a motion: one row of numbers for each frame, and the way back."""
