"""What a model computes: its spec, its operations and the families written against them."""
