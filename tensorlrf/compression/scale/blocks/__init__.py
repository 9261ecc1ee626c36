"""Calibration of a checkpoint with one block of its model in memory."""
