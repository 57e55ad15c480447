"""The bytes of an array on disk: Zarr descriptions, chunks, packing, layouts and sizes."""
