"""Command lines: options, help, and errors for people."""
