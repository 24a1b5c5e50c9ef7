"""Kinds of answers: how each is found in a completion, and when two are the same."""
