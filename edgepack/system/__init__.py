"""What edgepack asks of the machine that it runs on: processes, threads, memory, libraries."""
