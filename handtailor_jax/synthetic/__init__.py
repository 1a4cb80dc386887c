"""Rendered hands: an endless labelled dataset."""
