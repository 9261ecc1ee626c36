"""Fitting: one layer's factors, to its weight or to its inputs."""
