"""Small programs on real data, each a whole use of fastattn from files to a checked result."""
