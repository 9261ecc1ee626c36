"""Two models, files, plans or reports side by side."""
