"""Files at addresses of the ``fsspec`` library, and temporary files on the disk of this machine."""
