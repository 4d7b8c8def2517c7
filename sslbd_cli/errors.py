"""The two ways a command ends without being at fault itself; main.py maps them to exit statuses."""


class InputError(Exception):
    """Usage or input is wrong (exit 2). The message names the object, what is wrong and what to do, in one line."""


class Unsound(Exception):
    """The run ended, but its result cannot be vouched for (exit 3): diverged, collapsed, inconclusive."""
