"""Errors about motion."""

from wanvae.errors import UserError


class MotionError(UserError):
    """Motion cannot be read, written or used. The message is one line and says what to do."""


class SkeletonError(MotionError):
    """Motion has as many joints as a model, but other joints or another rest pose."""
