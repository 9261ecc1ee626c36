"""Commands that measure models that are there: `bench`, `compare`, `spectra`."""
