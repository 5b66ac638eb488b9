"""Label sets come into being here: create, grow, generate, and variants of label sets that exist."""
