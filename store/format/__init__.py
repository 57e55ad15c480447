"""The format of the arrays on disk: Zarr metadata, chunks, packing, layouts and sizes."""
