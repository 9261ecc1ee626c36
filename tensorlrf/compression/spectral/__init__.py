"""What the singular values of a model's weights say, and what the model gains without some."""
