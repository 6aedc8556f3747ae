"""Text that can be written anywhere."""


def writable(text: str) -> str:
    """``text`` without the bytes that are no text, which names of files may have."""
    return text.encode(errors="replace").decode()
