"""Figures of run folders: ``collected`` reads them, the modules beside it draw one figure each, ``plot`` all
of them."""
