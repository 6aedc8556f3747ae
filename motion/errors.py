"""What goes wrong with motion files."""


class ClipError(ValueError):
    """A motion that cannot be read, written or used; one line that says what to do."""
