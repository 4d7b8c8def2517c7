"""One file, one value of `pretrain --method`."""
