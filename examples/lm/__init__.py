"""The parts of `train_lm.py`: text, model, devices, checkpoints, sampling, pictures."""
