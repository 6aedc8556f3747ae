"""What goes wrong with motion files."""

from wanvae.errors import UserError


class MotionError(UserError):
    """A motion that cannot be read, written or used; one line that says what to do."""
