"""Files that somebody else made, read as data: pickles and torch archives without torch, zip directories, YAML."""
