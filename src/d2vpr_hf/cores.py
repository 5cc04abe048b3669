"""How many cores this process may use, for whoever shares work among threads or processes."""

import os


def available_cores() -> int:
    """Cores that the system lets this process run on; all of the machine where it doesn't say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
