"""One file, one value of `data NAME`: where images come from."""
