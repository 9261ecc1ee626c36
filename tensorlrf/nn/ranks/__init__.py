"""Layers that run on the leading terms of their factors, and gates that choose how many."""
