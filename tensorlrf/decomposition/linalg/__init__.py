"""Spectra, sketches, Grams, solves, and the threads that they take."""
