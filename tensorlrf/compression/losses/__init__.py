"""What each layer of a model can lose: its passes over data, and the losses they tell of."""
