"""From a model, a recipe and a target to a plan: which tensor gets which scheme, and what memory that takes."""
