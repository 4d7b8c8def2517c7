"""The errors that end a command although the program itself works. main.py maps them to exit statuses."""


class InputError(Exception):
    """Usage or input is wrong (exit 2). The one-line message names the object, what is wrong and what to do."""


class Unsound(Exception):
"""The errors that end a command although the program itself works. main.py maps them to exit statuses."""
