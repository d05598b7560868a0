"""Runs cells: what Hydra composed, checked, executed on one loaded model, committed to the store."""
