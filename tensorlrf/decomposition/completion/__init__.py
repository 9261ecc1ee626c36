"""What is told by entries that are hidden on purpose."""
