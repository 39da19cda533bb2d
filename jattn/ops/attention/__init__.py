"""A call, its checks, its partial results, and what an implementation of it promises."""
