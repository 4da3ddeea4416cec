"""Bits a weight: what they cost (`calibrate --sensitivity`), and the recipe that shares them out (`--bits`)."""
