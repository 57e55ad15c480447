"""Run folders: their files, what is written to them and how they are read back."""
