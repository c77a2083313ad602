"""Figures of run folders, which ``medcm_cli.runs.sweeps`` reads: each module draws some, ``plot`` all."""
