"""The errors that end a command although the program itself works. main.py maps them to exit statuses."""

import errno

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(Exception):
    """Usage or input is wrong (exit 2). The message names the object, what is wrong and what to do, in one line."""


class OutOfMemory(InputError):
    """The work does not fit into the memory, even if it is done in small parts."""


class Unsound(Exception):
    """The run ended, but its result cannot be trusted (exit 3): diverged, collapsed or inconclusive."""


class OutOfTime(Unsound):
    """The time budget of the run was spent before there was a result."""


#: Words of torch's allocators. They raise RuntimeError, so only these words distinguish them from a bug.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocator raised the error because the memory is full."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
