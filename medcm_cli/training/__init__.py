"""The one training loop, its loss and the tables of its results."""
