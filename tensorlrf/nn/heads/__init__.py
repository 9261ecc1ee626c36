"""Heads of large vocabularies, which look at few of their words closely."""
