"""One file a kind of teacher: it turns a checkpoint into a canonical view."""
