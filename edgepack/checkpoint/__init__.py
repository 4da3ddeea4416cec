"""A checkpoint as its files: folder or hub repository, config and tensors, read lazily."""
