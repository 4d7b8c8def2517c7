"""`sslbd data`: make datasets of images."""
