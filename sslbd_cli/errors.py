"""The errors that end a command although the program itself works. main.py maps them to exit statuses."""


class InputError(Exception):
    """Usage or input is wrong (exit 2). The message names the object, what is wrong and what to do, in one line."""


class Unsound(Exception):
    """The run ended, but its result cannot be trusted (exit 3): diverged, collapsed or inconclusive."""


class OutOfTime(Unsound):
    """The time budget of the run was spent before there was a result."""
