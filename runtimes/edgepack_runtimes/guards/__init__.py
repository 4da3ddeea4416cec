"""What a stranger's model file is checked for before native code opens it."""
