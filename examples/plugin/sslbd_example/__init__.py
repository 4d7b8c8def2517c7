"""A trigger and a detector for sslbd, from a package of its own."""
