"""Helpers of both stages: command-line flags, workspace paths, devices, Dask, prefetching, atomic and JSON files."""
