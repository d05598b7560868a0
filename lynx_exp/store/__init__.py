"""Cells on disk: identity, atomic writes, journal and resume, provenance, readers. Needs neither torch nor Hydra."""
