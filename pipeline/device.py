"""How the machine is used: memory."""

import ctypes

# parameters of glibc's mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD
KEEP_MEMORY = ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20))


def keep_memory() -> None:
    """Let glibc keep freed memory, instead of returning it to the system at every call.

    Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in KEEP_MEMORY:
        mallopt(parameter, value)
