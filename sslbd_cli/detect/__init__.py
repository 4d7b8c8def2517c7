"""`sslbd detect`: look for a backdoor in an encoder, its inputs or a training set."""
