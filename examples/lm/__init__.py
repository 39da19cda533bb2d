"""The parts of `train_lm.py`: text, model, checkpoints, sampling, pictures."""
