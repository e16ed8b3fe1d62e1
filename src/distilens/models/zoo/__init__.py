"""The networks of distilens itself, one family per file."""
