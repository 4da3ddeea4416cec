"""What native libraries do to this process: memory that they map and keep, lines that they print."""
