"""`sslbd pretrain`: train an encoder without labels."""
