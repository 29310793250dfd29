"""Errors as the user sees them: the one that is a message, without a traceback, and how others are known."""


class ClaraError(ValueError):
    """A message for the user: which file or record, what was found, what was wanted, and what to do."""


def short_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory was not to be had, on any of MLX's devices."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        word in said for word in ("out of memory", "outofmemory", "malloc", "allocate", "insufficient memory")
    )
