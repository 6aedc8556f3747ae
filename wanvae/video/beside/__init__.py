"""What lies beside the pictures of a file, carried into a file that is written."""
