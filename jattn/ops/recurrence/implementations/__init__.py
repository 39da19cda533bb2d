"""The implementations of the recurrences. `registry` says in which order the default tries them."""
