"""One file, one value of `poison --craft`."""
