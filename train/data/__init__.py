"""Training data from the store: splits, the prefetching reader, augmentation."""
