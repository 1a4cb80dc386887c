"""Videos: read and write them, follow a hand through their frames, and smooth it."""
