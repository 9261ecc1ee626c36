"""Checkpoints larger than memory: tensor by tensor, and nothing lost when a run ends early."""
