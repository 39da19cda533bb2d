"""Parts of the example of speech."""
