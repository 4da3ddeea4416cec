"""What measured processes did, made into metrics."""
