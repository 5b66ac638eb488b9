"""Stores of several machines: push and pull frozen stores, merge stores of parts of one data set."""
