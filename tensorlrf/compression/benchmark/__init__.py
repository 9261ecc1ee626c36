"""Two models in turn: how long they take, and how much memory."""
