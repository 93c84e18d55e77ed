"""Training: the embedded model's recipe, from data to bundle."""
