"""Stage two: features in, trained heads, scores and the report out. Imports the store, never extraction."""
