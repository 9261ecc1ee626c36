"""Times of layers and of whole models, before anything is factored."""
