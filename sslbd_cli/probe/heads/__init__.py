"""One file, one value of `probe --head`."""
