"""Hydra's launchers and sweeper: all cells here, or as jobs of a cluster."""
