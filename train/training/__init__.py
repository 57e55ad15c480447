"""Training: the loop, checkpoints, evaluation, sweeps in one process or on a Dask cluster."""
