"""`sslbd probe`: measure an encoder with classifiers built on it."""
