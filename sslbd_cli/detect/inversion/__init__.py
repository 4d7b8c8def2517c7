"""Search for a trigger by gradients."""
