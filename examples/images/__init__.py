"""What the examples about images share: handwritten digits, a command line, a training loop."""
