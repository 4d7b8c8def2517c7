"""`sslbd convert`: bring foreign checkpoints in, and take encoders out."""
