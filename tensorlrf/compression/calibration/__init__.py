"""What the layers of a model are fed, and what their outputs lose: streamed, never kept."""
