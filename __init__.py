"""pathseg: histology segmentation from the cached features of a frozen pathology diffusion model."""
