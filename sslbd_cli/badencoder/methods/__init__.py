"""One file, one value of `badencoder --method`."""
