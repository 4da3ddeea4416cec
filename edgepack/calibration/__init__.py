"""Statistics of what every matrix of a checkpoint is multiplied with, collected one layer at a time."""
