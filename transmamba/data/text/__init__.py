"""Readers of texts, one file each; what they read, tokenised once; and the blocks that models are given."""
