"""Surgery: change the normalization of a model that exists."""
