"""`sslbd report`: turn reports into pages, cards and figures."""

import logging

# without a HOME, Matplotlib warns of where its own files went
logging.getLogger("matplotlib").setLevel(logging.ERROR)
