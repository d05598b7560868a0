"""One policy a file; the file name is the name that users type."""
