"""Haemophilia A: covariate graph, imputation, virtual patients and synthetic cohorts. No other room knows a
disease."""

from medcm_cli.haemophilia.virtual import TrueParameters

__all__ = ["TrueParameters"]
