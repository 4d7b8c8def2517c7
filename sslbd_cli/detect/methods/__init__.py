"""One file, one value of `detect --method`."""
