"""Distillation: factors, norms and biases of a compressed model follow the given one."""
