"""Nets: encoders, selector, density, sampling, segmenter, memory budget, weights."""
