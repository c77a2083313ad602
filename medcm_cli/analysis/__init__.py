"""What finished fits say: diagnostics, standard errors, distances."""
