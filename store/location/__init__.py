"""Storage of a store's files: a local folder, S3, and the read cache for S3."""
