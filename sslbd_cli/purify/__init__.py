"""`sslbd purify`: remove a backdoor from an encoder, or poisons from a dataset."""
