"""What rounding a group of tensors costs on one checkpoint, measured."""
