"""The operations: attention and recurrences, each with several implementations."""
