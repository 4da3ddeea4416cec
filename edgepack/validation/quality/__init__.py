"""The quality of a package against a reference."""
