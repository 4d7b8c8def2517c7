"""`sslbd badencoder`: inject a backdoor into a clean encoder."""
