"""What mixers are: one class a family, registered by name; a file here is found by itself."""
