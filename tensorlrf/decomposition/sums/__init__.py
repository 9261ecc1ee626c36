"""Sums of formats: low rank and sparse, low rank and quantised, stages of residuals."""
