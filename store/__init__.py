"""What is kept: the feature store, its key, its checksums. Knows no model and no training."""
