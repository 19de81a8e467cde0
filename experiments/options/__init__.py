"""The options of the command line: one typed record a command."""
