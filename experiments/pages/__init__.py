"""Pages: figures, tables and the HTML that holds them."""
