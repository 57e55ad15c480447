"""The feature store: cached features with their key and checksums. Independent of models and training."""
