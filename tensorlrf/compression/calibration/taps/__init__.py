"""How convolutions read their inputs: which pixels a tap sees, for which outputs."""
