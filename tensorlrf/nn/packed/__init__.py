"""Modules that keep several matrices in one, with a layer of its own for each: recurrent ones,
attention, experts."""
