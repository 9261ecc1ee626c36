"""Recipes on the command line: what they say for options, and plans written as one."""
