"""The batch engine without a model: which sequence computes how many tokens next, and what follows.

Pure: no ML library, no I/O, no clock. Integers go in, effects come out.
"""
