"""What the answers of a package are worth, compared with a reference."""
