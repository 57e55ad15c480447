"""Generated H&E tissue with exact masks, as a data set."""
