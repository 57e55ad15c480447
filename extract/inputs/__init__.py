"""What `predict` reads: images, whole slides, and the tissue mask of a slide."""
