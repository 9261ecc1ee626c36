"""How the house stands, counted: `python -m bench.house`."""
