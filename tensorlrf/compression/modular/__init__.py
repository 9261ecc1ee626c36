"""Whole modules in closed form: fewer channels and smaller heads in place of factors."""
