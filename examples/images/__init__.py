"""What the examples about images share: handwritten digits, scenes composed of them, flags, a training loop."""
