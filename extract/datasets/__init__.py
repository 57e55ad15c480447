"""The data sets that stage one reads: GlaS, BCSS, a user's own folder, generated tissue."""
