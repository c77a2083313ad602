"""Configuration -> job -> run folders, and back."""
