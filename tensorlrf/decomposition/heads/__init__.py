"""Heads of attentions stacked as one tensor, on decompositions of the families."""
