"""Whole models to files and back."""
