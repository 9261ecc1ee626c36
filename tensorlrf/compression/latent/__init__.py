"""Attentions whose keys and values are of one low rank, of which a cache holds the one factor."""
