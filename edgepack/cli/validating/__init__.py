"""`edgepack validate`: its options, and how far it is on a terminal."""
