"""jaxclip from within other libraries."""
