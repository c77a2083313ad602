"""Mathematics of tensors alone: random streams and distances."""
