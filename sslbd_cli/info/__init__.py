"""`sslbd info`: describe any artefact."""
