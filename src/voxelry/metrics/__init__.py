"""How good a prediction is, in physical units."""
