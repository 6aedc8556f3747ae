"""Which parts of videos are worth using: scenes between cuts, movement, black bars, duplicates."""
