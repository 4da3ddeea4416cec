"""Golden answers: prompts whose answers are checked."""
