"""One file, one value of --select: which samples to poison."""
