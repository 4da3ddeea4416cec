"""Validation: run a package in fresh processes and say whether it fits, with the figures that show it.

`run` conducts what `settings` ask for and `request` has looked at, and `progress` tells how far it is. `processes` are
watched from outside, `figures` are made of what they did, `answers` are compared (`quality`) and held to rules
(`golden`), `verdict` says whether all of it is good enough, and `result` is the report that comes out.
"""
