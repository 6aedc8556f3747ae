"""Files beyond the disks of this machine, at addresses of the ``fsspec`` library."""
