"""Converters: a planned checkpoint becomes the files of one backend."""
