"""Readers of questions about pictures, one file each."""
