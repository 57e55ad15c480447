"""Images and whole slides that `predict` segments, read at the resolution that a head was trained at."""
