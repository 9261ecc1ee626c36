"""A core and a factor for each mode."""
