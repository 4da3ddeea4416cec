"""LiteRT: a bundle's graphs, run by its interpreter."""
