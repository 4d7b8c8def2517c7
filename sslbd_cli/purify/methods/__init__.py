"""One file, one value of `purify --method`."""
