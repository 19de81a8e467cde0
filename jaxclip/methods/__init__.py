"""The named methods, a file a family."""
