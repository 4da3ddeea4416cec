"""LiteRT-LM: a bundle, run by Google's engine."""
