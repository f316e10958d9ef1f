"""Memory that stays flat: how many pools the C library may keep for the threads of a server."""

import ctypes

M_ARENA_MAX = -8  # of malloc.h


def share_arenas(count: int = 2) -> bool:
    """Lets all threads share so many of glibc's arenas; whether there is such a library here.

    A server's threads come and go. By default each takes one of 8 arenas per core, which gives little back of what its largest
    request took: 200 requests by 16 threads grew from 615 to 720 MB, and with two arenas to 670 MB, no slower.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, count))
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
