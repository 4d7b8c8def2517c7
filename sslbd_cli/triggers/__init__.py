"""One file, one value of --trigger."""
