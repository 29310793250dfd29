"""The one error that clara shows a user as a message, without a traceback."""


class ClaraError(ValueError):
    """A message for the user: which file or record, what was found, what was wanted, and what to do."""
