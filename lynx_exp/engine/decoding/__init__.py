"""Prefill, decode steps, streams of lanes, teacher forcing: what runs requests through a transformers model."""
