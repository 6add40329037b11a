"""Tasks: data and metrics of one kind of problem, each a configuration dataclass in the registry TASKS."""
