"""p(eta | data): of one patient, or of a study's subjects by NUTS."""
