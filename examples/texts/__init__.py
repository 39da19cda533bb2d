"""What the examples of text share: subwords, message catalogs, docstrings, and scores of what is generated."""
