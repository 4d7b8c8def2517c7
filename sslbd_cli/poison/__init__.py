"""`sslbd poison`: plant a trigger in a dataset."""
