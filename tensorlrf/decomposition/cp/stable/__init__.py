"""Terms of CP of the smallest norms at an error."""
