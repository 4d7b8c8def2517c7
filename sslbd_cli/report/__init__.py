"""`sslbd report`: turn reports into pages, cards and figures."""
