"""The loop of annotation: changed outlines to segmented slides, by stage one, training and prediction in one call."""
