"""Decompositions: functions from a tensor to factors."""
