"""Where the bytes of a store lie: a local folder, S3, and the read cache in front of S3."""
