"""The Mamba blocks that students are made of."""
