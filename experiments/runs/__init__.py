"""One training on the command line, and the folder that it leaves."""
