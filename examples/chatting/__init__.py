"""Parts of the example of a chat."""
