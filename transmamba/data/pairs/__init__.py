"""Readers of pictures with captions, one file each."""
