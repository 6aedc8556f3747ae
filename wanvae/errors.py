"""Errors that tell people what is wrong with what they gave, and what to do."""


class UserError(ValueError):
    """What people gave cannot be used: a file, an option, a shape, a limit.

    The message is for them: what is wrong, with the value, and what to do. Command lines print it
    in one line. Any other exception is a fault of this program and keeps its traceback.
    """
