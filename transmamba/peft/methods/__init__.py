"""What an adapter can be made of: one class a method, registered by name; a file here is found by itself."""
