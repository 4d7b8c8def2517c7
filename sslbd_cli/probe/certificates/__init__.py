"""One file, one value of `probe --certify`."""
