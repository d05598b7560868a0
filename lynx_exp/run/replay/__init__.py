"""Finished cells opened again: rescoring and export."""
