"""Stage one: images in, features of a frozen model out, once per patch. Imports the store, never training."""
