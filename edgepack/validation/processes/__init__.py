"""Processes that are watched from outside, behind a hard limit of memory."""
