"""What both stages share and no library gives: command-line flags, workspace paths, devices, Dask, prefetching."""
