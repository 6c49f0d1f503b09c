"""Jobs → worker → records: the loop, the worker that owns the GPU, and how its parent sees it."""
