"""Reports: what was won and what was lost."""
