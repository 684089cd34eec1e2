"""How many workers each elastic gang should hold."""
