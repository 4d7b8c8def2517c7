"""`sslbd embed`: turn images and texts into features."""
