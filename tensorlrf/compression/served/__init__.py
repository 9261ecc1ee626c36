"""Models as programs that serve them know them: layers of low rank or dense, in stock sizes."""
